"""Figures of results, for a paper or a benchmark page."""
