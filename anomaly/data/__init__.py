"""Scans in: readers, the manifest, transforms, loaders and the phantom."""
