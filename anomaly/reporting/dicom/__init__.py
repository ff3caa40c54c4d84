"""DICOM objects of the results."""
