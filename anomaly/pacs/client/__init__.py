"""What asks an archive, and sends to one: DICOMweb and DIMSE."""
