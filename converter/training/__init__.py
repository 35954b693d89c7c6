"""Training a converted network toward its original."""
