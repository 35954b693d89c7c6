"""Benchmarks: ``python -m scripts.benchmarks run SUITE`` measures one suite and records it."""
