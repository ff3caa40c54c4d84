"""Headers of compressed frames: JPEG, JPEG-LS and JPEG 2000 codestreams.

A decoder uses the codestream header, and code that arranges the decoded bytes as pixels uses the
DICOM header. If the two differ, the picture is garbage or a different one, without any error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import Dataset
from pydicom import uid as uids

__all__ = ["CodestreamHeader", "coding_of", "read_codestream_header", "run_length_conflict"]

# Start of frame of every JPEG process, and of JPEG-LS (ITU-T T.81 table B.1, T.87 annex C).
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_END_OR_SCAN = frozenset({0xD9, 0xDA})
_SOC = b"\xff\x4f\xff\x51"  # start of codestream, then SIZ (ITU-T T.800 A.4.1, A.5.1)
_COD = 0xFF52
_CODINGS = {
    **dict.fromkeys(uids.JPEGTransferSyntaxes, "JPEG"),
    **dict.fromkeys(uids.JPEGLSTransferSyntaxes, "JPEG-LS"),
    **dict.fromkeys(uids.JPEG2000TransferSyntaxes, "JPEG 2000"),
}


@dataclass(frozen=True)
class CodestreamHeader:
    """Size and depth of a compressed frame.

    Attributes
    ----------
    coding : str
        ``"JPEG"``, ``"JPEG-LS"`` or ``"JPEG 2000"``.
    rows, columns : int
    components : int
        Samples per pixel.
    bits : int
        Bits per sample.
    colours : {"", "RGB", "YBR_FULL"}
        Colour space of the decoded samples, whatever the DICOM header states; empty if the
        codestream does not define it. JPEG 2000 with a component transform decodes to RGB. In JPEG
        the Adobe marker defines it; JFIF is YBR (T.871), and so is subsampled colour.
    signed : bool
        Whether samples are signed; only JPEG 2000 supports this.
    """

    coding: str
    rows: int
    columns: int
    components: int
    bits: int
    colours: str = ""
    signed: bool = False

    def conflict(self, header: Dataset) -> str:
        """Describe how the codestream contradicts the DICOM header; empty if it does not."""
        stated = (int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1)))
        allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
        # Some writers use more bits in the codestream than are stored, which changes no value. A
        # codestream with too few bits for the stated values changes their range.
        fits = self.bits <= allocated and not self.bits <= 8 < stored
        # Unsigned samples under a signed header occur, and decoders correct them.
        fits = fits and not (self.signed and int(header.get("PixelRepresentation", 0)) == 0)
        if stated == (self.rows, self.columns, self.components) and fits:
            return ""
        return (
            f"the {self.coding} codestream holds {self.rows} x {self.columns} pixels, "
            f"{self.components} sample(s) of {self.bits} bits{', signed' if self.signed else ''}; "
            f"the header says {stated[0]} x {stated[1]}, {stated[2]} sample(s) of {stored} bits in "
            f"{allocated}, PixelRepresentation {header.get('PixelRepresentation', 0)}"
        )


def coding_of(transfer_syntax: str) -> str:
    """Coding of a transfer syntax, as in `CodestreamHeader.coding`; empty for other syntaxes."""
    return _CODINGS.get(uids.UID(transfer_syntax), "")


def read_codestream_header(frame: bytes) -> CodestreamHeader | None:
    """Read the header of a compressed frame; None if it has none, as with run-length coding."""
    try:
        if frame.startswith(_SOC):
            return _jpeg_2000(frame)
        if frame.startswith(b"\xff\xd8"):
            return _jpeg(frame)
    except (struct.error, IndexError):  # truncated: the decoder will report it
        return None
    # A JP2 file in a frame violates the standard (PS3.5 A.4.4), but decoders accept it.
    start = _contiguous_codestream(frame) if frame[4:8] == b"jP  " else 0
    return read_codestream_header(frame[start:]) if start else None


def _contiguous_codestream(frame: bytes) -> int:
    """Offset of the codestream in a JP2 file (ITU-T T.800 I.4, I.5.4); 0 if there is none."""
    place = 0
    while place + 8 <= len(frame):
        length, kind = int.from_bytes(frame[place : place + 4], "big"), frame[place + 4 : place + 8]
        header = 8
        if length == 1:  # a longer length follows
            length, header = int.from_bytes(frame[place + 8 : place + 16], "big"), 16
        if kind == b"jp2c":
            return place + header
        if length < header:  # 0 (to the end of the file), or invalid
            return 0
        place += length
    return 0


def run_length_conflict(frame: bytes, header: Dataset) -> str:
    """Describe how a run-length coded frame contradicts the DICOM header; empty if it does not.

    Run-length coding does not state a size: a segment contains one byte of every pixel (PS3.5 annex
    G), and a decoder drops surplus bytes.
    """
    if len(frame) < 64:
        return f"the run-length coding has no header: it ends after {len(frame)} bytes"
    pixels = int(header.Rows) * int(header.Columns)
    expected = int(header.get("SamplesPerPixel", 1)) * int(header.BitsAllocated) // 8
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != expected:
        return f"the run-length coding has {count} segments, and the header asks for {expected}"
    end = offsets[1] if count > 1 else len(frame)
    length = _unpacked_length(frame[offsets[0] : end], pixels)
    if length in (pixels, pixels + 1):  # segments have even length
        return ""
    return (
        f"the run-length coding holds {length} pixels, and the header says {header.Rows} x "
        f"{header.Columns}"
    )


def _unpacked_length(segment: bytes, expected: int) -> int:
    """Unpacked size of a PackBits segment in bytes (PS3.5 G.3.2), without zero padding."""
    place = length = 0
    content = len(segment.rstrip(b"\0"))
    while place + 1 < len(segment) and (place < content or length < expected):
        control = segment[place]
        if control < 128:
            length += min(control + 1, len(segment) - place - 1)
            place += control + 2
        else:
            length += 257 - control if control > 128 else 0
            place += 2 if control > 128 else 1
    return length


def _jpeg(frame: bytes) -> CodestreamHeader | None:
    place, colours = 2, ""
    while True:
        # Fill bytes (T.81 B.1.1.2), and stray bytes between segments, which decoders skip.
        while frame[place] != 0xFF or frame[place + 1] in (0x00, 0xFF):
            place += 1
        if frame[place + 1] in _END_OR_SCAN:
            return None
        marker = frame[place + 1]
        if marker in _WITHOUT_LENGTH:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", frame, place + 2)
        body = frame[place + 4 : place + 2 + length]
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            colours = {0: "RGB", 1: "YBR_FULL"}.get(body[11], colours)
        elif marker == 0xE0 and body.startswith(b"JFIF\0") and not colours:
            colours = "YBR_FULL"
        if marker in _START_OF_FRAME:
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, place + 4)
            if body[6::3][:3] == b"RGB":  # names of the components
                colours = "RGB"
            elif not colours and len(set(body[7::3][:components])) > 1:  # sampling factors
                colours = "YBR_FULL"
            # Lossless processes and JPEG-LS do not transform colours.
            lossy = marker in (0xC0, 0xC1, 0xC2)
            coding = "JPEG-LS" if marker == 0xF7 else "JPEG"
            return CodestreamHeader(
                coding, rows, columns, components, bits, colours if lossy else ""
            )
        place += 2 + length


def _jpeg_2000(frame: bytes) -> CodestreamHeader:
    # SIZ: length, capabilities, then size and offset of the image on its grid (T.800 A.5.1)
    width, height, left, top = struct.unpack_from(">4I", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    depths = [frame[42 + 3 * index] for index in range(components)]
    bits, signed = 1 + max(depth & 0x7F for depth in depths), bool(max(depths) & 0x80)
    place = 4 + struct.unpack_from(">H", frame, 4)[0]
    mixed = False
    while place + 4 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, place)
        if marker == _COD:
            mixed = frame[place + 8] == 1  # last byte of SGcod (T.800 A.6.1)
            break
        if not 0xFF4F <= marker < 0xFF90:  # tile-parts begin
            break
        place += 2 + length
    colours = "RGB" if mixed and components == 3 else ""
    return CodestreamHeader(
        "JPEG 2000", height - top, width - left, components, bits, colours, signed
    )
