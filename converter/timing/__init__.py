"""Measured latencies of networks and of their layers."""
