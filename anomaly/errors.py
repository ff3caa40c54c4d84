"""All errors that this library raises deliberately.

::

    AnomalyError
    ├── ConfigError                 a setting is unknown, contradictory or out of range
    ├── ScanError                   one scan cannot be used; it gets a row and the run continues
    │   ├── UnreadableScan          the bytes cannot be decoded
    │   └── UnsupportedScan         decoded, but of a kind that the toolkit was not tested on
    ├── ManifestError               the table of scans is inconsistent (a patient in two splits)
    ├── TrainingError               training cannot continue
    │   └── NonFiniteLoss           the loss is NaN or infinite; names step, levels and scans
    ├── CheckpointError             a training checkpoint is missing, damaged or of another run
    ├── BundleError                 a bundle is damaged or does not fit its use
    ├── ArchiveError                a PACS refused a request, or its answer cannot be used
    │   └── ArchiveUnreachable      it did not answer, or is too busy; a retry may help
    │       └── ArchiveBusy         it answers, but cannot store all that was sent
    └── CalibrationError            a false-alarm rate cannot be guaranteed
        ├── NotCalibrated           flags were requested from an uncalibrated bundle
        └── TooFewCalibrationScans  n normals cannot support the stated alpha

Pipelines catch `ScanError` per scan, record it and continue; all other errors stop the run.
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
    """Base class of all errors that the toolkit raises deliberately."""


class _ReasonedError(AnomalyError):
    """An error with a short stable reason, which may be shared, and a private sentence."""

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
        Sentence for people: the actual value, the expected one, what to do. It may quote
        file contents, so it belongs in private tables only; `reason` may be shared.
    """


class UnreadableScan(ScanError):
    """The bytes cannot be decoded."""


class UnsupportedScan(ScanError):
    """The scan decodes, but is of a kind that the toolkit was not tested on."""


class ManifestError(AnomalyError):
    """The table of scans is inconsistent."""


class TrainingError(AnomalyError):
    """Training cannot continue."""


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite."""


class CheckpointError(AnomalyError):
    """A training checkpoint is missing, damaged or belongs to another run."""


class BundleError(AnomalyError):
    """A bundle is damaged, or does not fit its use."""


class ArchiveError(_ReasonedError):
    """A PACS refused a request, or its answer cannot be used.

    Parameters
    ----------
    reason : str
        Short stable word for logs and counts, such as ``"HTTP 404"``.
    message : str
        Sentence for people. It names the PACS, so only `reason` may be shared.
    """


class ArchiveUnreachable(ArchiveError):
    """A PACS did not answer or is too busy; a retry may help.

    Attributes
    ----------
    wait : float
        Seconds that the PACS requests before a retry.
    """

    wait: float = 0.0


class ArchiveBusy(ArchiveUnreachable):
    """A PACS answers, but has no room for some of the instances sent."""


class CalibrationError(AnomalyError):
    """A false-alarm rate cannot be guaranteed."""


class NotCalibrated(CalibrationError):
    """Flags were requested from a bundle that is not calibrated."""


class TooFewCalibrationScans(CalibrationError):
    """The number of calibration scans cannot support the stated false-alarm rate."""
