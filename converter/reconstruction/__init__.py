"""Layers solved and refit on sample inputs."""
