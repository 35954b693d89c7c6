"""What to replace by what."""
