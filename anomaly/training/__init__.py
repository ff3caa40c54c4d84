"""Training of the network and fitting of the detector on normal scans."""
