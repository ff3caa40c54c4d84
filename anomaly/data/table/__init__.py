"""The table of scans: contents of a folder, pseudonyms and splits."""
