"""Tasks: what a network's outputs mean, and what is lost when they change."""
