"""Whose instance an encoded data set is: two UIDs, found in its bytes without decoding the rest.

::

    data set = element*                                          PS3.5 7.1
    element  = tag, VR (explicit syntaxes), length, value        PS3.5 7.1.2, 7.1.3
    value of undefined length = (item tag, length, value)*, delimiter    PS3.5 7.5

The bytes come from the network. Nothing before the Study Instance UID is interpreted, nothing after
it is looked at, and a length that leads beyond the end is an error, not a guess.
"""

from __future__ import annotations

import hashlib
import struct

from anomaly.pacs.instances import is_uid

__all__ = ["instance_digest", "read_identity"]

SOP_INSTANCE, STUDY_INSTANCE = 0x00080018, 0x0020000D
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF

_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with two reserved bytes and a length of four (PS3.5 table 7.1-1)."""


def read_identity(dataset: bytes, *, implicit: bool, little_endian: bool) -> tuple[str, str]:
    """Read the SOP Instance UID and the Study Instance UID of a data set.

    Parameters
    ----------
    dataset : bytes
        As encoded, without preamble and file meta information; not deflated.
    implicit, little_endian : bool
        Of its transfer syntax.

    Returns
    -------
    instance, study : str

    Raises
    ------
    ValueError
        If the bytes are no data set, or one of the two is missing or no UID.
    """
    found: dict[int, bytes] = {}
    try:
        _Walk(dataset, "<" if little_endian else ">").elements(0, implicit, found)
    except (struct.error, RecursionError) as error:
        raise ValueError("the data set ends early, or nests too deeply") from error
    uids = [
        found.get(tag, b"").rstrip(b"\0 ").decode("ascii", errors="replace")
        for tag in (SOP_INSTANCE, STUDY_INSTANCE)
    ]
    if not all(map(is_uid, uids)):
        raise ValueError("the data set has no SOP Instance UID, or no Study Instance UID")
    return uids[0], uids[1]


def instance_digest(syntax: str, dataset: bytes) -> str:
    """Hash that is equal where an instance's data set and its transfer syntax are.

    Not of the whole file: its meta information names the version of the receiving software.
    """
    return hashlib.sha256(syntax.encode() + b"\0" + dataset).hexdigest()


class _Walk:
    """Positions in one data set; every method starts at one and returns the next."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order

    def elements(self, at: int, implicit: bool, found: dict[int, bytes] | None = None) -> int:
        """Walk until the end of the item, or of what is wanted where `found` takes it."""
        while found is None or at < len(self._data):
            tag, vr, length, at = self._header(at, implicit)
            if tag == _ITEM_END:
                return at
            if found is not None and tag > STUDY_INSTANCE:
                return at  # elements are in ascending order (PS3.5 7.1)
            # VR UN of undefined length holds items in implicit VR (PS3.5 6.2.2, note 4).
            start, at = at, self._skip(at, length, implicit or vr == b"UN")
            if found is not None and tag in (SOP_INSTANCE, STUDY_INSTANCE):
                found[tag] = self._data[start:at]
        return at

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
