"""Scans and a bundle -> verdicts: the engine, and how many processes share its work."""
