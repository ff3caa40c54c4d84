"""Configuration files: read with overrides, and written with a hash of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly.config.checks import check
from anomaly.config.settings import Config, dump, plain
from anomaly.config.strict_yaml import read_yaml
from anomaly.errors import ConfigError
from anomaly.files import whole, writing

__all__ = ["load_config", "override", "parse_config", "read_keys", "write_config"]

_SEAL = "# sha256 of what follows: "


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``a.b=c`` overrides.

    Raises
    ------
    ConfigError
        If the file is missing or is not YAML, a key is unknown, or a value is invalid.
    """
    raw = read_keys(path)
    _apply(raw, overrides)
    return parse_config(raw)


def write_config(path: Path, config: Config) -> None:
    """Write the resolved configuration with its hash, atomically and with mode 0600.

    Raises
    ------
    AnomalyError
        If the file cannot be written.
    """
    text = dump(config)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with writing(path), whole(path, mode=0o600) as file:
        file.write(f"{_SEAL}{digest}\n{text}".encode())


def _check_seal(path: Path, text: str) -> None:
    first, _, content = text.partition("\n")
    expected = first.removeprefix(_SEAL)
    if expected != first and hashlib.sha256(content.encode()).hexdigest() != expected:
        raise ConfigError(
            f"{path} is not what was written there: it is damaged, or was edited. Settings are "
            "changed by --set; to use an edited copy elsewhere, remove its first line"
        )


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Check plain values against `Config`; see `load_config` for errors."""
    return check(raw, Config)


def read_keys(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file, unchecked; see `load_config` for errors."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"configuration {path} cannot be read ({error.strerror}): name a YAML file, such as "
            "one of the folder configs"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration {path} is not UTF-8 (byte {error.start} is "
            f"{error.object[error.start]:#x}): save it as UTF-8"
        ) from error
    _check_seal(path, text)
    raw = read_yaml(text, f"configuration {path}")
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration {path} holds no keys: expected `key: value` lines")
    return raw


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Apply ``a.b=c`` overrides to a configuration; see `load_config` for errors."""
    raw = plain(config)
    _apply(raw, overrides)
    return parse_config(raw)


def _apply(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides in place; each key may be set only once."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key} is set twice (--set, --alpha): keep one")
    for text in overrides:
        _override(raw, text)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override!r}: expected section.key=value, such as training.steps=500"
        )
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
    raw[last] = read_yaml(text, f"--set {override}")
