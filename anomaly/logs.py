"""Allow-list for log lines: they may contain numbers, and text that the toolkit marks as public.

Log files are shared. Text from a scan, a path or another library's exception may name a person, so
it must not be logged: in the toolkit's own messages every argument that is neither a number nor
`Public` is withheld, and messages of other libraries are withheld entirely. The error sentence at
the end of a failed command is for the user who started it, and is not logged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["AllowList", "Public", "log_what_is_allowed", "printable"]

OWN = ("anomaly",)
"""Packages whose message texts are trusted, because they are constants in the code."""

WITHHELD = "[withheld]"


class Public(str):
    """Text by the toolkit that quotes no scan, such as a reason, a candidate's name or a hash."""

    __slots__ = ()


ALLOWED = (bool, int, float, Public)
"""Types of arguments that a log line may contain."""


def log_what_is_allowed() -> None:
    """Send log lines to standard error through the allow-list; call once in every process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for handler in logging.getLogger().handlers:
        if not any(isinstance(part, AllowList) for part in handler.filters):
            handler.addFilter(AllowList())
    # Their errors arrive as exceptions; the filter would only add lines of withheld messages.
    for name in ("pydicom", "nibabel", "monai", "pynetdicom", "highdicom", "tifffile", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters that a terminal executes, changes of writing direction and line breaks; not
tabs."""


def printable(text: str) -> str:
    """Text on one line, safe for a terminal: control characters are replaced by escapes."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class AllowList(logging.Filter):
    """Filter that withholds disallowed content; added to handlers, so no record bypasses it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Withhold disallowed content; drop messages of other libraries below WARNING."""
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
