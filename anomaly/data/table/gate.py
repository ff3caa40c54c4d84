"""The gate: refuses scans outside a detector's domain by their tags or number of frames.

A detector trained on frontal chest radiographs cannot judge a knee, and a low score would look
normal. A scan with an empty tag passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from anomaly.data.readers.frames import MAX_FRAMES
from anomaly.errors import ConfigError, Reason, UnsupportedScan
from anomaly.types import Scan

__all__ = ["OPEN_GATE", "Gate"]


@dataclass(frozen=True)
class Gate:
    """What a scan may be; an empty tuple lets everything pass.

    Attributes
    ----------
    modalities : tuple of str
        DICOM Modality, such as ``"DX"``; of other formats the name in capitals, such as ``"PNG"``.
    body_parts : tuple of str
        DICOM BodyPartExamined, such as ``"CHEST"``.
    views : tuple of str
        DICOM ViewPosition, such as ``"PA"``.
    max_frames : int
        Frames of a file: each is scored, and a file of more is left out before any is decoded.
    """

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    max_frames: int = MAX_FRAMES

    def __post_init__(self) -> None:
        """Check that `max_frames` is within the limits."""
        if not 1 <= self.max_frames <= MAX_FRAMES:
            raise ConfigError(f"gate.max_frames is {self.max_frames}: expected 1 to {MAX_FRAMES:,}")

    def check_frames(self, count: int) -> None:
        """Refuse a file with more than `max_frames` frames.

        Raises
        ------
        UnsupportedScan
            ``"too many frames"``.
        """
        if count > self.max_frames:
            raise UnsupportedScan(
                Reason.TOO_MANY_FRAMES,
                f"the file has {count:,} frames; at most {self.max_frames:,} are scored "
                "(gate.max_frames; of a node, max_frames).",
            )

    def check(self, scan: Scan) -> None:
        """Refuse a scan that the gate does not allow.

        Raises
        ------
        UnsupportedScan
            ``"modality"``, ``"body part"`` or ``"view"``.
        """
        for reason, value, allowed in (
            (Reason.MODALITY, scan.modality, self.modalities),
            (Reason.BODY_PART, scan.body_part, self.body_parts),
            (Reason.VIEW, scan.view, self.views),
        ):
            if allowed and value and value.upper() not in map(str.upper, allowed):
                raise UnsupportedScan(
                    reason,
                    f"the {reason} is {value!r}; this detector judges {', '.join(allowed)} (gate).",
                )


OPEN_GATE = Gate()
