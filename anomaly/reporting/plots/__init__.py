"""Figures of results for papers and benchmark pages."""
