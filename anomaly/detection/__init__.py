"""Anomaly detection: features, detector, heatmap, calibration.

Raw likelihood is not an anomaly score: a smooth image is likely, but may be abnormal. The score is
a density over features of the network at many noise levels, fitted on normal scans.
"""
