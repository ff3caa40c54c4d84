"""Every error this library raises on purpose.

::

    AnomalyError
    ├── ConfigError                 a setting is unknown, contradictory or out of range
    ├── ScanError                   one scan cannot be used; the run goes on, the scan gets a row
    │   ├── UnreadableScan          the bytes cannot be decoded
    │   └── UnsupportedScan         decoded, but not what the toolkit has been tested on
    ├── ManifestError               the table of scans is inconsistent (a patient in two splits)
    ├── TrainingError               training cannot go on
    │   └── NonFiniteLoss           the loss is NaN or infinite; says step, levels and scans
    ├── CheckpointError             a training checkpoint is missing, damaged or of another run
    ├── BundleError                 a bundle is damaged or does not fit what is asked of it
    ├── ArchiveError                an archive refused, or answered what cannot be used
    │   └── ArchiveUnreachable      it did not answer or is too busy; asking again may help
    └── CalibrationError            a false-alarm rate cannot be promised
        ├── NotCalibrated           flags were asked of an uncalibrated bundle
        └── TooFewCalibrationScans  n normals cannot support the stated alpha

Pipelines catch `ScanError` per scan, record it and go on; everything else stops the run.
"""

__all__ = [
    "AnomalyError",
    "ArchiveError",
    "ArchiveUnreachable",
    "BundleError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "ManifestError",
    "NonFiniteLoss",
    "NotCalibrated",
    "ScanError",
    "TooFewCalibrationScans",
    "TrainingError",
    "UnreadableScan",
    "UnsupportedScan",
]


class AnomalyError(Exception):
    """Base of every error that the toolkit raises on purpose."""


class _ReasonedError(AnomalyError):
    """An error with a short stable reason, which may be shared, and a sentence, which may not."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(AnomalyError):
    """A setting is unknown, contradictory or out of range."""


class ScanError(_ReasonedError):
    """One scan cannot be used.

    Parameters
    ----------
    reason : str
        Short stable word for tables and counts, such as ``"truncated"``.
    message : str
        The sentence for a person: the value seen, what was expected, what to do. It may quote
        file contents, so it belongs in private tables only; `reason` may be shared.
    """


class UnreadableScan(ScanError):
    """The bytes cannot be decoded."""


class UnsupportedScan(ScanError):
    """The scan decodes, but it is not a kind that the toolkit has been tested on."""


class ManifestError(AnomalyError):
    """The table of scans is inconsistent."""


class TrainingError(AnomalyError):
    """Training cannot go on."""


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite."""


class CheckpointError(AnomalyError):
    """A training checkpoint is missing, damaged or belongs to another run."""


class BundleError(AnomalyError):
    """A bundle is damaged, or does not fit what is asked of it."""


class ArchiveError(_ReasonedError):
    """An archive refused what was asked, or answered what cannot be used.

    Parameters
    ----------
    reason : str
        Short stable word for logs and counts, such as ``"HTTP 404"``.
    message : str
        The sentence for a person. It names the archive, so `reason` alone may be shared.
    """


class ArchiveUnreachable(ArchiveError):
    """An archive did not answer or is too busy; asking again may help.

    Attributes
    ----------
    wait : float
        Seconds for which the archive asks to be left alone.
    """

    wait: float = 0.0


class ArchiveBusy(ArchiveUnreachable):
    """An archive answers, and has no room for some of what it was sent."""


class CalibrationError(AnomalyError):
    """A false-alarm rate cannot be promised."""


class NotCalibrated(CalibrationError):
    """Flags were asked of a bundle that has not been calibrated."""


class TooFewCalibrationScans(CalibrationError):
    """The number of calibration scans cannot support the stated false-alarm rate."""
