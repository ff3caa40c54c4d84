"""From density to evidence: features, detector, heatmap, calibration.

Raw likelihood is no anomaly score (a smooth image is likely, and may be ill); a density over what
the network says at many noise levels, fitted on normal scans, is.
"""
