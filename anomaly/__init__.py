"""Learn what normal medical scans look like, and find what is not.

One road, walked in one direction::

    scan files --data--> Scan --cdm--> logits, gradients --detection--> ScanScore
               --calibration--> Verdict --reporting--> HTML

Research use only. Not a diagnosis.
"""

__version__ = "0.1.0"
