"""Tags of a dataset, or of the functional group that holds them for one of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset

__all__ = ["first_number", "functional_group", "numbers", "text"]


def text(dataset: Dataset, keyword: str) -> str:
    """Value of a tag as text without padding; empty where it is absent or empty."""
    value = dataset.get(keyword, None)
    return "" if value is None else str(value).strip()


def first_number(value: Any) -> float:
    """First number of a value that may hold one or several."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0]
    return float(value)


def numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Numbers of a tag; None where it is absent, or does not hold `count` of them."""
    value = dataset.get(keyword, None)
    if value is None or isinstance(value, str):
        return None
    found = tuple(float(item) for item in (value if isinstance(value, Sequence) else [value]))
    return found if count in (None, len(found)) else None


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Item of an enhanced multi-frame object that applies to one frame, or None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence", None) or []
    shared = dataset.get("SharedFunctionalGroupsSequence", None) or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        items = group.get(keyword, None)
        if items:
            item: Dataset = items[0]
            return item
    return None
