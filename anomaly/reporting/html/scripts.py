"""Bundler of the page's JavaScript modules: one script, each module after its imports.

Browsers do not let a page on disk import modules from files. The modules are therefore combined
into one script, in which each is a function that is called once and returns its exports::

    import * as dom from "./dom.js";          const score = (() => {
    export function draw() { ... }      ->      function draw() { ... }
                                                return { draw };
                                              })();

The import statement is removed, because ``dom`` is the constant with the result of the other
function. Linters can read the modules unchanged. Other forms of import and export raise an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from anomaly.errors import ConfigError

__all__ = ["bundle_scripts"]

_IMPORT = re.compile(r'^import \* as (\w+) from "\./(\w+)\.js";\n', re.M)
_EXPORT = re.compile(r"^export (?=(?:const|function|class) (\w+))", re.M)
_OTHER = re.compile(r"^\s*(?:import|export)\b(?!\().*", re.M)


def bundle_scripts(modules: Mapping[str, str]) -> str:
    """Return the modules as one script.

    Parameters
    ----------
    modules : mapping of str to str
        Sources by name, in the order of execution as far as their imports allow it.

    Raises
    ------
    ConfigError
        A module imports an unknown module, imports in a circle, imports under another name, or has
        an import or export of another form.
    """
    order: dict[str, str] = {}
    for name in modules:
        _add(name, modules, order, ())
    body = "\n".join(f"const {name} = (() => {{\n{text}}})();" for name, text in order.items())
    return f'(() => {{\n"use strict";\n{body}\n}})();\n'


def _add(
    name: str, modules: Mapping[str, str], order: dict[str, str], importers: tuple[str, ...]
) -> None:
    """Add a module to `order`, after the modules that it imports."""
    if name in order:
        return
    if name not in modules:
        raise ConfigError(
            f"the script {importers[-1]!r} imports {name!r}: expected one of {', '.join(modules)}"
        )
    if name in importers:
        raise ConfigError(f"scripts import each other: {' -> '.join((*importers, name))}")
    for alias, imported in _IMPORT.findall(modules[name]):
        if alias != imported:
            raise ConfigError(
                f"the script {name!r} imports {imported!r} as {alias!r}: keep its name"
            )
        _add(imported, modules, order, (*importers, name))
    order[name] = _wrap(name, modules[name])


def _wrap(name: str, source: str) -> str:
    """Return the module as the body of a function."""
    exports = _EXPORT.findall(source)
    body = _EXPORT.sub("", _IMPORT.sub("", source))
    if other := _OTHER.search(body):
        raise ConfigError(
            f"the script {name!r} has {other[0].strip()!r}: expected import * as NAME from "
            '"./NAME.js"; and export const, function or class'
        )
    return f"{body.rstrip()}\nreturn {{ {', '.join(exports)} }};\n"
