"""A whole network: where convolutions come from and go back to."""
