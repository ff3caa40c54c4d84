"""Evaluation of scores against labels: metrics with intervals, and ROC curves."""
