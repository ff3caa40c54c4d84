"""DICOMweb client (PS3.18): search an archive, fetch instances and store them."""

from anomaly.pacs.client.dicomweb.archive import DicomWeb

__all__ = ["DicomWeb"]
