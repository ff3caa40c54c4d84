"""Plain values -> settings: unknown, ambiguous and out-of-range values are refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from anomaly.cdm.network import NetworkSettings
from anomaly.config.settings import Config, DetectorFit
from anomaly.detection.heatmap import HeatmapSettings, MapChannel
from anomaly.detection.kinds import KINDS, LedoitWolfSettings
from anomaly.errors import ConfigError

__all__ = ["check"]

_Settings = TypeVar("_Settings")


def check(raw: Mapping[str, Any], settings: type[_Settings]) -> _Settings:
    """Check plain values against a class of settings; see `load_config` for errors."""
    if settings is Config:
        raw = _without_idle_fields(raw)
    _refuse_unknown(raw, settings, "")
    _refuse_mistaken(raw, "")
    _refuse_beyond(raw, "")
    read = _with_kinds(raw) if settings is Config else raw
    try:
        checked: _Settings = TypeAdapter(settings).validate_python(read)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where} is {first['input']!r}: {first['msg']}") from error
    _refuse_converted(raw, checked, "")
    _refuse_mistaken(checked, "")
    return checked


_MOST: Mapping[str, float] = {
    "augmentation.gamma": 100,
    "augmentation.rotate": 180,
    "augmentation.shift": 1,
    "data.workers": 1024,
    "detector.nuisance_copies": 1000,
    "features.bands": 1024,
    "features.draws": 1000,
    "features.grid": 1024,
    "levels.steps": 10_000,
    "look_alikes": 1_000_000,
    "network.blocks": 100,
    "network.features": 8192,
    "network.patch": 256,
    "network.widths": 8192,
    "preprocessing.size": 4096,
    "training.batch_size": 1_000_000,
}
"""Upper limits. Larger values are meaningless, or would silently use too much memory or time."""


def _refuse_beyond(raw: Any, where: str) -> None:
    """Refuse numbers above their limit in `_MOST`; lists are checked item by item."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            _refuse_beyond(value, f"{where}.{key}" if where else str(key))
    elif isinstance(raw, list | tuple):
        for value in raw:
            _refuse_beyond(value, where)
    elif isinstance(raw, int | float) and raw > _MOST.get(where, math.inf):
        raise ConfigError(f"{where} is {raw}: expected at most {_MOST[where]:,}")


def _refuse_mistaken(raw: Any, where: str) -> None:
    """Refuse NaN, which range checks do not catch, infinity, and seeds that are out of range."""
    if is_dataclass(raw) and not isinstance(raw, type):
        raw = {item.name: getattr(raw, item.name) for item in fields(raw)}
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            _refuse_mistaken(value, f"{where}.{key}" if where else str(key))
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            _refuse_mistaken(value, f"{where}[{index}]")
    elif isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"{where} is {raw}: expected a finite number")
    elif where.rpartition(".")[2] == "seed" and isinstance(raw, int) and not 0 <= raw < 2**63:
        raise ConfigError(f"{where} is {raw}: expected 0 to 2^63 - 1")


def _refuse_converted(raw: Any, checked: Any, where: str) -> None:
    """Refuse values that pydantic converted between booleans, numbers and text, as true to 1."""
    if isinstance(raw, bool) and not isinstance(checked, bool):
        raise ConfigError(f"{where} is {str(raw).lower()}: expected a {type(checked).__name__}")
    if isinstance(checked, bool) and not isinstance(raw, bool):
        raise ConfigError(f"{where} is {raw!r}: expected true or false")
    if isinstance(raw, str) and isinstance(checked, int | float):
        raise ConfigError(f"{where} is {raw!r}, a text: expected a number, without quotes")
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            inner = checked.get(key) if isinstance(checked, Mapping) else getattr(checked, key)
            _refuse_converted(value, inner, f"{where}.{key}" if where else str(key))
    elif isinstance(raw, list | tuple) and isinstance(checked, list | tuple):
        for index, (value, inner) in enumerate(zip(raw, checked, strict=True)):
            _refuse_converted(value, inner, f"{where}[{index}]")


def _refuse_unknown(raw: Mapping[str, Any], owner: type, where: str) -> None:
    """Refuse unknown keys and suggest the nearest valid one, which pydantic does not."""
    known = {f.name for f in fields(owner)}
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"expected one of {sorted(known)}"
            raise ConfigError(f"unknown configuration key {where}{key}: {hint}")
        section = _section(owner, key, value)
        if section is not None:
            _refuse_unknown(value, section, f"{where}{key}.")
        if owner is DetectorFit and key == "candidates" and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping) and (kind := KINDS.get(_kind_name(item))):
                    _refuse_unknown(item, kind.settings, f"{where}candidates[{index}].")
        if owner is HeatmapSettings and key == "channels" and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    _refuse_unknown(item, MapChannel, f"{where}channels[{index}].")


def _section(owner: type, key: str, value: Any) -> type | None:
    """Class of a nested section, or None if the key has a plain value."""
    if owner is not Config or not isinstance(value, Mapping):
        return None
    if key == "network":
        kinds = {cls.kind: cls for cls in NetworkSettings.__args__}
        return kinds.get(str(value.get("kind", "encoder")))
    default = next(f for f in fields(Config) if f.name == key).default_factory
    return default if isinstance(default, type) and is_dataclass(default) else None


def _kind_name(candidate: Mapping[str, Any]) -> str:
    return str(candidate.get("kind", LedoitWolfSettings.kind))


_IDLE_FIELDS = {"guard": [], "components": 100, "clusters": 3, "neighbours": 5}
"""Defaults of fields that every candidate had before each kind had its own settings."""


def _without_idle_fields(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Remove unused fields that earlier versions wrote for every candidate, whatever its kind."""

    def plain_candidate(item: Any) -> Any:
        if not isinstance(item, Mapping) or _kind_name(item) not in KINDS:
            return item
        own = {f.name for f in fields(KINDS[_kind_name(item)].settings)}
        return {
            name: value
            for name, value in item.items()
            if name in own or name not in _IDLE_FIELDS or value != _IDLE_FIELDS[name]
        }

    return _with_candidates(raw, plain_candidate)


def _with_kinds(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert each candidate to the settings of its kind.

    Raises
    ------
    ConfigError
    """
    number = count()

    def settings_of(item: Any) -> Any:
        place = f"detector.candidates.{next(number)}"
        if not isinstance(item, Mapping):
            return item  # pydantic refuses it later
        name = _kind_name(item)
        if name not in KINDS:
            raise ConfigError(f"{place}.kind is {name!r}: expected one of {', '.join(KINDS)}")
        try:
            return TypeAdapter(KINDS[name].settings).validate_python(dict(item))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([place, *map(str, first["loc"])])
            raise ConfigError(f"{where} is {first['input']!r}: {first['msg']}") from error

    return _with_candidates(raw, settings_of)


def _with_candidates(raw: Mapping[str, Any], change: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Return a configuration with a function applied to every detector candidate."""
    detector = raw.get("detector")
    if not isinstance(detector, Mapping) or not isinstance(detector.get("candidates"), list):
        return raw
    candidates = [change(item) for item in detector["candidates"]]
    return {**raw, "detector": {**detector, "candidates": candidates}}
