"""The gate: scans that a detector must not judge, by what their tags say.

A detector that has learned frontal chests has nothing to say of a knee, and a low score of one
would pass for normal. A tag that is empty says nothing, and lets a scan pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from anomaly.errors import UnsupportedScan
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
    """

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    def check(self, scan: Scan) -> None:
        """Refuse a scan that the detector has not learned.

        Raises
        ------
        UnsupportedScan
            ``"modality"``, ``"body part"`` or ``"view"``.
        """
        for reason, said, allowed in (
            ("modality", scan.modality, self.modalities),
            ("body part", scan.body_part, self.body_parts),
            ("view", scan.view, self.views),
        ):
            if allowed and said and said.upper() not in map(str.upper, allowed):
                raise UnsupportedScan(
                    reason,
                    f"the {reason} is {said!r}; this detector judges {', '.join(allowed)} (gate).",
                )


OPEN_GATE = Gate()
