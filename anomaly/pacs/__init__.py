"""Fetch scans from an archive and return results to it, over DICOMweb or DIMSE."""
