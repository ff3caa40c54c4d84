"""Identifiers of an encoded data set, read from its bytes without decoding the rest.

::

    data set = element*                                          PS3.5 7.1
    element  = tag, VR (explicit syntaxes), length, value        PS3.5 7.1.2, 7.1.3
    value of undefined length = (item tag, length, value)*, delimiter    PS3.5 7.5

    file     = preamble, "DICM", group 2, data set                   PS3.10 7.1

The bytes come from the network. A few elements up to the Series Instance UID are kept, and nothing
after it is parsed. A length that points beyond the end raises an error.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.uid import UID
from pydicom.valuerep import TEXT_VR_DELIMS

from anomaly.pacs.client.instances import is_uid

__all__ = [
    "Identity",
    "check_whole",
    "instance_digest",
    "read_file_identity",
    "read_identity",
    "read_syntax",
]

_TRANSFER_SYNTAX = 0x00020010
_CHARACTER_SET, _PATIENT = 0x00080005, 0x00100020
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY_INSTANCE, _SERIES_INSTANCE = 0x0020000D, 0x0020000E
_KEPT = (
    _CHARACTER_SET,
    _SOP_CLASS,
    _SOP_INSTANCE,
    _PATIENT,
    _STUDY_INSTANCE,
    _SERIES_INSTANCE,
    _TRANSFER_SYNTAX,
)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF

_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with two reserved bytes and a length of four (PS3.5 table 7.1-1)."""


_HEAD = 2**20
"""Number of bytes of a deflated data set that are inflated to find the identifiers."""

_Answer = TypeVar("_Answer")


class Identity(NamedTuple):
    """Identifiers of an instance.

    Attributes
    ----------
    instance, study, series, sop_class : str
        UIDs; the latter two are empty if the data set has none.
    patient : str
        Patient ID without surrounding spaces; empty if absent.
    """

    instance: str
    study: str
    series: str
    sop_class: str
    patient: str


def read_identity(
    dataset: bytes | mmap.mmap, *, implicit: bool, little_endian: bool, start: int = 0
) -> Identity:
    """Read the identifiers of a data set.

    Parameters
    ----------
    dataset : bytes or mmap
        Encoded data set, not deflated.
    implicit, little_endian : bool
        VR encoding and byte order of its transfer syntax.
    start : int
        Offset of the data set, after the preamble and the file meta information.

    Returns
    -------
    Identity

    Raises
    ------
    ValueError
        If the bytes are not a data set, or the SOP or Study Instance UID is missing or invalid.
    """
    elements: dict[int, bytes] = {}
    try:
        _Walk(dataset, "<" if little_endian else ">").elements(start, implicit, elements)
    except (struct.error, RecursionError) as error:
        raise ValueError("the data set ends early, or nests too deeply") from error
    instance, study, series, sop_class = (
        elements.get(tag, b"").rstrip(b"\0 ").decode("ascii", errors="replace")
        for tag in (_SOP_INSTANCE, _STUDY_INSTANCE, _SERIES_INSTANCE, _SOP_CLASS)
    )
    if not (is_uid(instance) and is_uid(study)):
        raise ValueError("the data set has no SOP Instance UID, or no Study Instance UID")
    patient = _text(elements.get(_PATIENT, b""), elements.get(_CHARACTER_SET, b""))
    return Identity(instance, study, series, sop_class, patient)


def read_file_identity(content: bytes | mmap.mmap, start: int = 0) -> Identity:
    """Read the identifiers of a DICOM file.

    Parameters
    ----------
    content : bytes or mmap
    start : int
        Offset of the file in `content`.

    Raises
    ------
    ValueError
        If it is not a DICOM file; otherwise as for `read_identity`.
    """
    syntax, begin = read_syntax(content, start)
    if syntax.is_deflated:
        # The inflated size is unknown, but the identifiers are near the start.
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content, begin = inflater.decompress(content[begin : begin + _HEAD], _HEAD), 0
        except zlib.error as error:
            raise ValueError("the deflated data set is damaged") from error
    return _either(
        syntax,
        lambda implicit: read_identity(
            content, implicit=implicit, little_endian=syntax.is_little_endian, start=begin
        ),
    )


def check_whole(content: bytes | mmap.mmap, start: int = 0) -> None:
    """Raise an error if a DICOM file is truncated.

    Raises
    ------
    ValueError
    """
    syntax, begin = read_syntax(content, start)
    if syntax.is_deflated:  # the stream has its own end marker, which its reader checks
        return
    walk = _Walk(content, "<" if syntax.is_little_endian else ">")
    try:
        _either(syntax, lambda implicit: walk.to_end(begin, implicit))
    except (struct.error, RecursionError) as error:
        raise ValueError("the data set ends early, or nests too deeply") from error


def _either(syntax: UID, read: Callable[[bool], _Answer]) -> _Answer:
    """Read with the stated VR encoding, else as implicit VR: some files wrongly state explicit."""
    try:
        return read(syntax.is_implicit_VR)
    except (ValueError, struct.error):
        if syntax.is_implicit_VR:
            raise
        try:
            return read(True)
        except (ValueError, struct.error):
            pass
        raise


def read_syntax(content: bytes | mmap.mmap, start: int = 0) -> tuple[UID, int]:
    """Read the transfer syntax of a DICOM file and the offset of its data set.

    Raises
    ------
    ValueError
        If it is not a DICOM file with a transfer syntax.
    """
    if content[start + 128 : start + 132] != b"DICM":
        raise ValueError("no DICOM file")
    elements: dict[int, bytes] = {}
    try:
        begin = _Walk(content, "<").elements(start + 132, False, elements, last=0x0002FFFF)
    except (struct.error, RecursionError) as error:
        raise ValueError("the file meta information ends early") from error
    syntax = UID(elements.get(_TRANSFER_SYNTAX, b"").rstrip(b"\0 ").decode("ascii", "replace"))
    if not syntax or not syntax.is_transfer_syntax:
        raise ValueError("the file names no transfer syntax")
    return syntax, begin


def _text(value: bytes, character_set: bytes) -> str:
    """Decode text with the character sets of its data set (PS3.5 6.1)."""
    names = character_set.rstrip(b"\0 ").decode("ascii", errors="replace").split("\\")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid character set: decode what is possible
        encodings = convert_encodings(names)
        return decode_bytes(value.rstrip(b"\0 "), encodings, TEXT_VR_DELIMS).strip()


def instance_digest(syntax: str, dataset: bytes) -> str:
    """Hash of an instance's data set and its transfer syntax.

    The file meta information is excluded, because it contains the version of the receiving
    software.
    """
    return hashlib.sha256(syntax.encode() + b"\0" + dataset).hexdigest()


class _Walk:
    """Parser of one data set; each method takes a byte offset and returns the next one."""

    def __init__(self, data: bytes | mmap.mmap, order: str) -> None:
        self._data = data
        self._order = order

    def elements(
        self,
        at: int,
        implicit: bool,
        kept: dict[int, bytes] | None = None,
        last: int = _SERIES_INSTANCE,
    ) -> int:
        """Return the offset after the item or, with `kept`, of the first element after `last`."""
        while kept is None or at < len(self._data):
            begin = at
            tag, vr, length, at = self._header(at, implicit)
            if tag == _ITEM_END:
                return at
            if kept is not None and tag > last:
                return begin  # elements are in ascending order (PS3.5 7.1)
            # VR UN of undefined length holds items in implicit VR (PS3.5 6.2.2, note 4).
            start, at = at, self._skip(at, length, implicit or vr == b"UN")
            if kept is not None and tag in _KEPT:
                kept[tag] = self._data[start:at]
        return at

    def to_end(self, at: int, implicit: bool) -> None:
        """Walk through all elements of the data set."""
        while at < len(self._data):
            _, vr, length, at = self._header(at, implicit)
            at = self._skip(at, length, implicit or vr == b"UN")

    def _header(self, at: int, implicit: bool) -> tuple[int, bytes, int, int]:
        group, element = self._read("HH", at)
        tag = group << 16 | element
        if implicit or group == 0xFFFE:  # items and delimiters never have a VR (PS3.5 7.5)
            return tag, b"", self._read("I", at + 4)[0], at + 8
        vr = self._data[at + 4 : at + 6]
        if vr in _LONG:
            return tag, vr, self._read("I", at + 8)[0], at + 12
        return tag, vr, self._read("H", at + 6)[0], at + 8

    def _skip(self, at: int, length: int, implicit: bool) -> int:
        if length != _UNDEFINED:
            if at + length > len(self._data):
                raise ValueError("a value leads beyond the end of the data set")
            return at + length
        while True:
            tag, _, length, at = self._header(at, implicit)
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise ValueError("a sequence holds something that is no item")
            if length == _UNDEFINED:
                at = self.elements(at, implicit)
            else:
                at = self._skip(at, length, implicit)

    def _read(self, code: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + code, self._data, at)
