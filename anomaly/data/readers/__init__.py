"""Readers: files of every supported kind -> scans, decoded in separate processes."""
