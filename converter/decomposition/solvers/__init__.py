"""Solvers: each takes a ``KernelProblem`` or arrays and returns factors."""
