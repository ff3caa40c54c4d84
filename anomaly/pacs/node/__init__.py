"""DICOM node: receives instances and keeps them until they are scored and delivered."""
