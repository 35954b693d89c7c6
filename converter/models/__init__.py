"""Torch models and checkpoints: load, export, match, apply."""
