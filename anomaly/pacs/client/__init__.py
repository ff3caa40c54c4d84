"""Clients that query an archive and send to it: DICOMweb and DIMSE."""
