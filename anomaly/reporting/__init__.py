"""Reports of verdicts: figures, HTML page, PDF and DICOM objects. No score is computed here."""
