"""What a log line may carry: numbers, and text that the toolkit marks as its own.

Log files are passed around. Whatever a scan, a path or another library's exception says may name a
person, so it does not get there: of our own messages every argument that is neither a number nor
`Public` is withheld, and other libraries' messages are withheld whole. The one sentence that a
failing command ends with is for who started it, and is no log line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["AllowList", "Public", "log_what_is_allowed", "printable"]

OWN = ("anomaly",)
"""Packages whose message texts are trusted: they are constants in the code."""

WITHHELD = "[withheld]"


class Public(str):
    """Text that the toolkit wrote and that quotes no scan: a reason, a candidate's name, a hash."""

    __slots__ = ()


ALLOWED = (bool, int, float, Public)
"""Types of arguments that a log line may carry."""


def log_what_is_allowed() -> None:
    """Send log lines to standard error through the allow-list; for every process, once."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for handler in logging.getLogger().handlers:
        if not any(isinstance(part, AllowList) for part in handler.filters):
            handler.addFilter(AllowList())
    # What they say of a file reaches us as exceptions; the filter would withhold it line by line.
    for name in ("pydicom", "nibabel", "monai", "pynetdicom", "highdicom", "tifffile", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, and what turns or breaks a line; not a tab."""


def printable(text: str) -> str:
    """Text on one line that a terminal shows and does not obey: control characters as escapes."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class AllowList(logging.Filter):
    """Takes out of a log record what it may not carry; for a handler, so that nothing passes by."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Withhold what is not allowed; drop what others say below a warning."""
        record.exc_info = record.exc_text = record.stack_info = None
        if record.name.partition(".")[0] not in OWN:
            record.msg = "a message of %s is withheld: it may quote a scan"
            record.args = (record.name,)
            return record.levelno >= logging.WARNING
        if isinstance(record.args, Mapping):  # one dictionary, for %(name)s
            record.args = {name: _allowed(argument) for name, argument in record.args.items()}
        else:
            record.args = tuple(map(_allowed, record.args or ()))
        return True


def _allowed(argument: Any) -> Any:
    if isinstance(argument, Public):
        return Public(printable(argument))
    return argument if isinstance(argument, ALLOWED) else Public(WITHHELD)
