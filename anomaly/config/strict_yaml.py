"""Unambiguous YAML: values that different YAML versions read differently are refused.

YAML 1.1, which PyYAML implements, reads ``010`` as 8, ``1:30`` as 90 and ``no`` as false; of two
equal keys it keeps the last. Here each of these is an error that states the line. ``1e-2``, which
is text in YAML 1.1, is read as a number, as people expect; so is ``50_000``, with underscores
between thousands.
"""

from __future__ import annotations

import re
from typing import Any
from unicodedata import normalize

import yaml

from anomaly.errors import ConfigError

__all__ = ["read_yaml", "write_yaml"]

_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_SPELLING = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]*_[0-9a-fA-F_]*|[0-9][0-9_]*_[0-9_.]*)")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:_[0-9]{3})+")
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
_TAG = "tag:yaml.org,2002:"


_PLAIN = {
    f"{_TAG}{kind}"
    for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map", "merge")
}


class _Loader(yaml.SafeLoader):
    """Reads ``1e-2`` as a number."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `read_yaml` would read as another type, such as ``08``."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "'" if _LEADING_ZERO.fullmatch(text) or _SPELLING.fullmatch(text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Loader.add_implicit_resolver(f"{_TAG}float", _SCIENTIFIC, list("-+0123456789"))
_Dumper.add_implicit_resolver(f"{_TAG}float", _SCIENTIFIC, list("-+0123456789"))
_Dumper.add_representer(str, _text)


def read_yaml(text: str, where: str) -> Any:
    """Parse a YAML text and return its plain value.

    Parameters
    ----------
    text : str
    where : str
        Source of the text, for messages.

    Raises
    ------
    ConfigError
        If the text is not YAML, a mapping has a key twice, or a value is ambiguous.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, where, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is not YAML that can be read: it is nested too deep") from error


def write_yaml(value: Any) -> str:
    """Write a plain value as YAML; `read_yaml` reads it back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check(node: yaml.Node, where: str, known: set[int]) -> None:
    if id(node) in known:  # an alias of an earlier node
        raise ConfigError(f"{where} has an alias on {_line(node)} (& and *): write it out")
    known.add(id(node))
    typed = isinstance(node, yaml.ScalarNode) and node.style and node.tag != f"{_TAG}str"
    if node.tag not in _PLAIN or typed:
        raise ConfigError(
            f"{where} is not YAML of plain values: {node.tag.replace(_TAG, '!!')} on "
            f"{_line(node)}; write the value alone"
        )
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, where)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, where, known)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            _check(key, where, known)
            _check(value, where, known)
            name = normalize("NFC", key.value) if isinstance(key, yaml.ScalarNode) else str(key)
            if key.tag == f"{_TAG}merge":
                raise ConfigError(f"{where} merges keys (<<) on {_line(key)}: write them out")
            if name in seen:
                raise ConfigError(
                    f"{where} names {name!r} twice, the second time on {_line(key)}: keep one"
                )
            seen.add(name)


def _check_scalar(node: yaml.ScalarNode, where: str) -> None:
    meaning = _second_meaning(node)
    if meaning and node.style is None:  # quoted values are text
        raise ConfigError(
            f"{where} says {node.value} on {_line(node)}, {meaning}: write a plain number, true "
            "or false, or put a text in quotes"
        )


def _second_meaning(node: yaml.ScalarNode) -> str:
    kind, value = node.tag.removeprefix(_TAG), node.value
    if _SPELLING.fullmatch(value) and not _THOUSANDS.fullmatch(value):
        return "a number to some readers and a text to others"
    if _LEADING_ZERO.fullmatch(value):
        return "a number with a leading zero, which may count in eights"
    if kind in ("int", "float") and ":" in value:
        return "a number that counts in sixties"
    if kind == "bool" and value.lower() not in ("true", "false"):
        return "a word that some take for true or false"
    return "a date" if kind == "timestamp" else ""


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
