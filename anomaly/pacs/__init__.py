"""The archive: scans come from it, and results go back to it, by DICOMweb or DIMSE."""
