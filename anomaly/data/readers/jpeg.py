"""Detection of truncated or damaged JPEG data.

A decoder fills missing data with grey and continues: libjpeg only issues a warning ("premature end
of data segment"), which its callers do not pass on. Missing data of a scan must never be invented,
so every JPEG is checked with a decoder that stops at this warning; if its coding has only one
decoder, the messages that this decoder prints are read.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import simplejpeg

from anomaly.errors import Reason, UnreadableScan

__all__ = ["check_jpeg", "jpeg_warnings"]

_WARNING = re.compile(rb"^(Corrupt JPEG data|Premature end of JPEG).*$", re.M)
_LOCK = threading.RLock()


def check_jpeg(path: Path, content: bytes) -> None:
    """Refuse an 8-bit JPEG whose data are truncated or damaged.

    Parameters
    ----------
    path : Path
        For error messages.
    content : bytes
        A JPEG of one or three components, sequential or progressive.

    Raises
    ------
    UnreadableScan
        ``"truncated"``: the data end before the picture is complete; ``"undecodable"``: they are
        damaged in another way.
    """
    try:
        # At an eighth of the size, all data are read but little is computed.
        simplejpeg.decode_jpeg(_usual(content), colorspace="GRAY", min_height=1, min_width=1)
    except ValueError as error:
        # Other errors (an unknown subsampling) are not damage; the actual decoder handles them.
        if _WARNING.search(str(error).encode("utf-8", "replace")):
            raise _fault(path, str(error)) from error


def _usual(content: bytes) -> bytes:
    """Set the JFIF revision to the usual one: a warning about it would hide all later warnings."""
    place = content.find(b"JFIF\0", 0, 64)
    return content if place < 0 else content[: place + 5] + b"\1\2" + content[place + 7 :]


@contextmanager
def jpeg_warnings(path: Path) -> Iterator[None]:
    """Raise the warnings that a native decoder prints; other output is passed on.

    This captures standard error of the whole process, so decode in processes, not in threads.

    Raises
    ------
    UnreadableScan
        As `check_jpeg`.
    """
    with _LOCK:
        yield from _listened(path)


def _listened(path: Path) -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a service without standard error
        kept = os.open(os.devnull, os.O_WRONLY)
    failure = None
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception as error:  # any failure: a printed warning may explain it
            failure = error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            printed = file.read()
            others = _WARNING.sub(b"", printed).strip()
            if others:
                with suppress(OSError):  # a service without standard error
                    os.write(2, others + b"\n")
    warning = _WARNING.search(printed)
    if warning is not None:
        raise _fault(path, warning[0].decode("ascii", "replace")) from failure
    if failure is not None:
        raise failure


def _fault(path: Path, message: str) -> UnreadableScan:
    if "premature end" in message.lower():
        return UnreadableScan(
            Reason.TRUNCATED,
            f"{path} is a JPEG whose data end before its picture does; copy it again.",
        )
    return UnreadableScan(
        Reason.UNDECODABLE, f"{path} is a JPEG with damaged data ({message}); copy it again."
    )
