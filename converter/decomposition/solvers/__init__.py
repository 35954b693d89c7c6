"""Numerics only: arrays in, factors and relative error out."""
