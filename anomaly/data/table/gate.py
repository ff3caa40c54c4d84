"""The gate: scans that a detector must not judge, by what their tags say, or by their number.

A detector that has learned frontal chests has nothing to say of a knee, and a low score of one
would pass for normal. A tag that is empty says nothing, and lets a scan pass.
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
        """Refuse a number of frames that no file may have."""
        if not 1 <= self.max_frames <= MAX_FRAMES:
            raise ConfigError(f"gate.max_frames is {self.max_frames}: expected 1 to {MAX_FRAMES:,}")

    def check_frames(self, count: int) -> None:
        """Refuse a file of more frames than may be scored.

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
        """Refuse a scan that the detector has not learned.

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
