"""Benchmark: each scan is observed once, and all figures are computed from the observations."""
