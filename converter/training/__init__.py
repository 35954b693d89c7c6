"""Training of a converted network toward its original."""
