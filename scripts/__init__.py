"""Benchmarks and tools of the project; they run from a checkout and are not installed."""
