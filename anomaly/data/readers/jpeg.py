"""Whether a JPEG holds all of its picture.

A decoder fills up what is missing with grey and goes on: libjpeg says so by a warning
("premature end of data segment") that its callers do not pass on. A scan of which nothing is made
up needs that warning, so every JPEG is looked at by a decoder that stops at it, or, where the
coding has only one decoder, what that prints is read.
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
    """Refuse a JPEG of 8 bits whose data end early, or contradict themselves.

    Parameters
    ----------
    path : Path
        For messages.
    content : bytes
        A JPEG of one or three components, sequential or progressive.

    Raises
    ------
    UnreadableScan
        ``"truncated"``: the data end before the picture does; ``"undecodable"``: they are damaged
        in another way.
    """
    try:
        # An eighth of the size: all data are read, and little is computed.
        simplejpeg.decode_jpeg(_usual(content), colorspace="GRAY", min_height=1, min_width=1)
    except ValueError as error:
        # What else it says (sampling that it does not know) is no damage; another decoder judges.
        if _WARNING.search(str(error).encode("utf-8", "replace")):
            raise _fault(path, str(error)) from error


def _usual(content: bytes) -> bytes:
    """Give a JPEG the usual revision of JFIF: a remark on another would hide all that follows."""
    place = content.find(b"JFIF\0", 0, 64)
    return content if place < 0 else content[: place + 5] + b"\1\2" + content[place + 7 :]


@contextmanager
def jpeg_warnings(path: Path) -> Iterator[None]:
    """Raise what a decoder in native code only prints; what else it prints is passed on.

    Standard error of the whole process is read meanwhile, so decode in processes, not in threads.

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
        except Exception as error:  # whatever it is, the warning may say why
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
