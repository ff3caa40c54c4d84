"""DICOMweb (PS3.18): to search an archive, to fetch from it, to store in it."""

from anomaly.pacs.client.dicomweb.archive import DicomWeb

__all__ = ["DicomWeb"]
