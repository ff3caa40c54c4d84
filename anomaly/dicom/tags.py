"""Access to tags of a dataset, or of the functional group that applies to one of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.errors import BytesLengthException
from pydicom.sequence import Sequence as DicomSequence

__all__ = ["functional_group", "is_there", "numbers", "text", "value_of", "whole_number"]


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Value of a tag; None if it is absent or its text is not of its type.

    pydicom converts a value on access; for a decimal comma or letters in a number it raises one of
    several exceptions or returns the text. Use this only for optional tags; `is_there` tells
    absent tags from invalid ones.
    """
    try:
        return dataset.get(keyword, None)
    except (ValueError, TypeError, ArithmeticError, LookupError, BytesLengthException):
        return None


def is_there(dataset: Dataset, keyword: str) -> bool:
    """Whether a tag has a value, valid or not."""
    if keyword not in dataset:
        return False
    try:
        return not dataset[keyword].is_empty
    except (ValueError, TypeError, ArithmeticError, LookupError, BytesLengthException):
        return True


def text(dataset: Dataset, keyword: str) -> str:
    """Value of a tag as text without padding; empty if it is absent, empty or broken."""
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip()


def whole_number(dataset: Dataset, tag: str | tuple[int, int]) -> int | None:
    """Whole number of a tag; None if it is absent, empty, multi-valued or not a number."""
    try:
        stored: Any = dataset.get(tag, None)
        value = stored if isinstance(tag, str) or stored is None else stored.value
        return None if value is None else int(value)
    except (ValueError, TypeError, ArithmeticError, LookupError, BytesLengthException):
        return None


def numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Numbers of a tag; None if it is absent or broken, or does not contain `count` numbers."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, str):
        return None
    try:
        values = tuple(float(item) for item in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        return None
    return values if count in (None, len(values)) else None


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Item of a functional group sequence that applies to one frame, or None."""
    per_frame = _items(dataset, "PerFrameFunctionalGroupsSequence")
    shared = _items(dataset, "SharedFunctionalGroupsSequence")
    for group in (*per_frame[index : index + 1], *shared[:1]):
        items = _items(group, keyword)
        if items:
            return items[0]
    return None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; empty if it is absent or not a sequence."""
    value = value_of(dataset, keyword)
    return list(value) if isinstance(value, DicomSequence) else []
