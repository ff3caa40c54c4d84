"""YAML that means one thing: what readers of different versions read differently is refused.

YAML 1.1, which PyYAML reads, takes ``010`` for 8, ``1:30`` for 90 and ``no`` for false; of two
equal keys it keeps the last. Each is a sentence here, with the line it stands on, and no value.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from anomaly.errors import ConfigError

__all__ = ["read_yaml"]

_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str, where: str) -> Any:
    """Return the plain value of a YAML text.

    Parameters
    ----------
    text : str
    where : str
        What it is the text of, for messages.

    Raises
    ------
    ConfigError
        It is not YAML, a key stands twice in one place, or a value could mean two things.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _check(node, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def _check(node: yaml.Node, where: str) -> None:
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, where)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, where)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            _check(key, where)
            _check(value, where)
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key)
            if name in seen:
                raise ConfigError(
                    f"{where} names {name!r} twice, the second time on {_line(key)}: keep one"
                )
            seen.add(name)


def _check_scalar(node: yaml.ScalarNode, where: str) -> None:
    meaning = _second_meaning(node)
    if meaning and node.style is None:  # in quotes it is a text
        raise ConfigError(
            f"{where} says {node.value} on {_line(node)}, {meaning}: write a plain number, true "
            "or false, or put a text in quotes"
        )


def _second_meaning(node: yaml.ScalarNode) -> str:
    kind, value = node.tag.removeprefix(_TAG), node.value
    if _LEADING_ZERO.fullmatch(value):
        return "a number with a leading zero, which may count in eights"
    if kind in ("int", "float") and ":" in value:
        return "a number that counts in sixties"
    if kind == "bool" and value.lower() not in ("true", "false"):
        return "a word that some take for true or false"
    return "a date" if kind == "timestamp" else ""


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
