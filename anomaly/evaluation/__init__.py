"""Scores against labels: figures with intervals, and ROC curves."""
