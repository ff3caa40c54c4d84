"""Scans and a bundle -> verdicts: the scorer, and how several processes share its work."""
