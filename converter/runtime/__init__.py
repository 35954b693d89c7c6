"""Runtimes: opening, running, profiling and quantizing networks."""
