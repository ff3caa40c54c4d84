"""Pseudonyms: names that cannot be linked to a scan, study or patient without the site key."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from pathlib import Path

from anomaly.errors import ConfigError
from anomaly.files import writing
from anomaly.logs import Public

__all__ = ["load_site_key", "pseudonym", "scan_key"]

log = logging.getLogger(__name__)

# 64 bits: with ten million names, one archive in 370,000 has a collision (n^2 / 2^65).
_DIGITS = 16
_SITE_KEY_BYTES = 32

_LINKS = "pseudonyms to patients: chmod 600"


def pseudonym(site_key: bytes, name: str) -> str:
    """Pseudonym that cannot be linked to `name` without the site key: truncated HMAC-SHA256."""
    return hmac.new(site_key, os.fsencode(name), hashlib.sha256).hexdigest()[:_DIGITS]


def scan_key(site_key: bytes, instance: str, frame: int) -> str:
    """Pseudonym of a frame of an instance, or of a file by its hash."""
    return pseudonym(site_key, f"{instance}/{frame}")


def load_site_key(path: Path) -> bytes:
    """Read the secret key of the pseudonyms, or create one.

    Parameters
    ----------
    path : Path
        Text file of 64 hex digits and 8 digits of their hash, mode 0600; created with its folder if
        it does not exist.

    Returns
    -------
    bytes of length 32

    Raises
    ------
    ConfigError
        The file is not a site key, or is damaged.
    AnomalyError
        There is no file and a new one cannot be written; no partial file is left.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return _read(path)
        key = secrets.token_bytes(_SITE_KEY_BYTES)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(f"{key.hex()} {_check(key)}\n")
        except OSError:
            path.unlink()
            raise
        return key


def _read(path: Path) -> bytes:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    digits, _, check = text.partition(" ")
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * _SITE_KEY_BYTES}}}", digits):
        raise ConfigError(
            f"{path} has {len(text)} characters; expected a site key of "
            f"{2 * _SITE_KEY_BYTES} hex digits. Delete it to make a new one, which "
            "changes every pseudonym."
        )
    key = bytes.fromhex(digits)
    if check not in ("", _check(key)):  # keys of earlier versions have no checksum
        raise ConfigError(
            f"{path} is damaged: it is not the site key that was written, and would change every "
            "pseudonym. Bring it back from a copy."
        )
    if path.stat().st_mode & 0o077:
        log.warning("%s", Public(f"{path.name} can be read by others, who can then link {_LINKS}"))
    return key


def _check(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]
