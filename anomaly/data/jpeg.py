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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import simplejpeg

from anomaly.errors import UnreadableScan

__all__ = ["check_jpeg", "jpeg_warnings"]

_WARNING = re.compile(rb"^(Corrupt JPEG data|Premature end of JPEG|Warning: unknown).*$", re.M)


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
        simplejpeg.decode_jpeg(content, colorspace="GRAY", min_height=1, min_width=1)
    except ValueError as error:
        raise _fault(path, str(error)) from error


@contextmanager
def jpeg_warnings(path: Path) -> Iterator[None]:
    """Raise what a decoder in native code only prints; what else it prints is passed on.

    Standard error of the whole process is read meanwhile, so decode in processes, not in threads.

    Raises
    ------
    UnreadableScan
        As `check_jpeg`.
    """
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
                os.write(2, others + b"\n")
    warning = _WARNING.search(printed)
    if warning is not None:
        raise _fault(path, warning[0].decode("ascii", "replace")) from failure
    if failure is not None:
        raise failure


def _fault(path: Path, message: str) -> UnreadableScan:
    if "premature end" in message.lower():
        return UnreadableScan(
            "truncated", f"{path} is a JPEG whose data end before its picture does; copy it again."
        )
    return UnreadableScan(
        "undecodable", f"{path} is a JPEG with damaged data ({message}); copy it again."
    )
