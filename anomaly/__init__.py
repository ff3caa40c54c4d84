"""Learn the appearance of normal medical scans, and detect anomalies.

::

    import anomaly

    detector = anomaly.load("zhanglab")
    verdict = detector.score("scan.dcm")
    verdict.p_value, verdict.flagged, verdict.regions, verdict.evidence

The modules form a pipeline::

    scan files --data--> Scan --cdm--> logits, gradients --detection--> ScanScore
               --calibration--> Verdict --reporting--> HTML, PDF, DICOM

Research use only. Not a diagnosis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from anomaly.version import __version__

if TYPE_CHECKING:
    from anomaly.data.readers.registry import read_scan
    from anomaly.errors import (
        AnomalyError,
        BundleError,
        CalibrationError,
        ConfigError,
        NotCalibrated,
        ScanError,
    )
    from anomaly.scoring.detector import Detector, load
    from anomaly.types import Region, Scan, StudyVerdict, Verdict

__all__ = [
    "AnomalyError",
    "BundleError",
    "CalibrationError",
    "ConfigError",
    "Detector",
    "NotCalibrated",
    "Region",
    "Scan",
    "ScanError",
    "StudyVerdict",
    "Verdict",
    "__version__",
    "load",
    "read_scan",
]

_HOMES = {
    "Detector": "anomaly.scoring.detector",
    "load": "anomaly.scoring.detector",
    "read_scan": "anomaly.data.readers.registry",
    **dict.fromkeys(("Region", "Scan", "StudyVerdict", "Verdict"), "anomaly.types"),
    **dict.fromkeys(
        (name for name in __all__ if name.endswith("Error") or name == "NotCalibrated"),
        "anomaly.errors",
    ),
}
"""Module of each name, imported on first use because importing torch takes a second."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
