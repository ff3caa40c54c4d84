"""From normal scans to a trained network and a fitted detector."""
