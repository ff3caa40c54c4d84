"""Verdicts out: figures, the HTML page and DICOM objects. Nothing here computes a score."""
