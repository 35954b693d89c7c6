"""Checks, losses and comparisons of converted networks."""
