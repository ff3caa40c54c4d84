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

from __future__ import annotations

from enum import StrEnum

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
    "Reason",
    "ScanError",
    "TooFewCalibrationScans",
    "TrainingError",
    "UnreadableScan",
    "UnsupportedScan",
]


class AnomalyError(Exception):
    """Base class of all errors that the toolkit raises deliberately."""


class Reason(StrEnum):
    """Why a scan cannot be used: a short stable word, which may be shared.

    ``docs/reasons.md`` says what each of them means, and what to do.
    """

    ABSOLUTE_NAME = "absolute name"
    ALPHA = "alpha"
    ANOTHER_SIZE = "another size"
    BIT_DEPTH = "bit depth"
    BLANK = "blank"
    BODY_PART = "body part"
    CHANGED = "changed"
    CODESTREAM = "codestream"
    COLOUR = "colour"
    COMPRESSION = "compression"
    CONSTANT = "constant"
    CONTROL_CHARACTER_IN_NAME = "control character in name"
    DECODER_CRASHED = "decoder crashed"
    DECODER_TIMED_OUT = "decoder timed out"
    DIMENSIONS = "dimensions"
    DUPLICATE = "duplicate"
    DUPLICATE_NAME = "duplicate name"
    EMPTY = "empty"
    ENCRYPTED = "encrypted"
    FILE_NAME = "file name"
    FRAMES = "frames"
    INVERTED = "inverted"
    LINK = "link"
    LUT = "lut"
    MAP_DAMAGED = "map damaged"
    MAP_MISSING = "map missing"
    MEDIA_DIRECTORY = "media directory"
    MISSING = "missing"
    MODALITY = "modality"
    MULTI_FRAME = "multi-frame"
    NO_DECODER = "no decoder"
    NO_FRAME_OF_REFERENCE = "no frame of reference"
    NO_IDENTITY = "no identity"
    NO_MAP_KEPT = "no map kept"
    NO_PIXEL_DATA = "no pixel data"
    NO_PATIENT = "no patient"
    NO_SUCH_FRAME = "no such frame"
    NO_TRANSFER_SYNTAX = "no transfer syntax"
    NON_FINITE = "non-finite"
    NOT_A_FILE = "not a file"
    NOT_AN_IMAGE = "not an image"
    NOT_DICOM = "not dicom"
    NOT_EXPRESSIBLE = "not expressible"
    NOT_FINITE = "not finite"
    ORIENTATION = "orientation"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_RANGE = "out of range"
    OTHER_INSTANCE = "other instance"
    OUTSIDE = "outside"
    OWN_RESULT = "own result"
    OWN_RESULTS = "own results"
    PHOTOMETRIC = "photometric"
    RANGE = "range"
    RESCALE = "rescale"
    SCORE_NOT_FINITE = "score not finite"
    SOP_CLASS = "sop class"
    SYNTHETIC = "synthetic"
    TOO_LARGE = "too large"
    TOO_LONG = "too long"
    TOO_MANY_FRAMES = "too many frames"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    UNREADABLE = "unreadable"
    VIEW = "view"


class ConfigError(AnomalyError):
    """A setting is unknown, contradictory or out of range."""


class ScanError(AnomalyError):
    """One scan cannot be used.

    Parameters
    ----------
    reason : Reason
        Short stable word for tables and counts, such as ``Reason.TRUNCATED``.
    message : str
        Sentence for people: the actual value, the expected one, what to do. It may quote
        file contents, so it belongs in private tables only; `reason` may be shared.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        # A reader of another package may pass the word; one that is no `Reason` is a ValueError.
        self.reason = Reason(reason)
        super().__init__(self.reason, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


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


class ArchiveError(AnomalyError):
    """A PACS refused a request, or its answer cannot be used.

    Parameters
    ----------
    reason : str
        Short stable word for logs and counts, such as ``"HTTP 404"``.
    message : str
        Sentence for people. It names the PACS, so only `reason` may be shared.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


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
