"""Show the structure of the code: imports, lengths, and the modules that a scan passes through.

    python benchmarks/architecture.py graph
    python benchmarks/architecture.py walk SCAN

``graph`` prints the imports between packages as a Mermaid diagram, import cycles among modules, and
the lengths of modules, functions and parameter lists. ``walk`` runs the command `anomaly score` on
one scan in this process and prints the modules in the order in which they are entered.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Name and file of every module of the library and the stages."""
    found = {}
    for top in ("anomaly", "pipelines"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, names: set[str]) -> set[str]:
    """Modules of the project that a module imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if plain(one) in names else node.module for one in inside}
    return {plain(name) for name in found} & names


def plain(name: str) -> str:
    """Name of a stage by its folder `pipelines`, to which the package has a link."""
    return name.removeprefix("anomaly.") if name.startswith("anomaly.pipelines") else name


def package(name: str) -> str:
    """Package of a module: two components for the library, one for the stages."""
    parts = name.split(".")
    return "pipelines" if parts[0] == "pipelines" else ".".join(parts[1:2]) or "anomaly"


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """List import cycles: sets of several modules that import each other, also indirectly."""
    reach = {name: set(targets) for name, targets in graph.items()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {tuple(sorted(m for m in reach[n] if n in reach[m])) for n in reach if n in reach[n]}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, number of lines and number of parameters of every function of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.body[1:] if ast.get_docstring(node) else node.body
            first = body[0].lineno if body else node.lineno
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            yield f"{path.stem}.{node.name}", node.end_lineno - first + 1, count


def draw_graph() -> None:
    """Print the diagram and the lengths."""
    files = modules()
    graph = {name: imports(path, set(files)) - {name} for name, path in files.items()}
    edges = Counter(
        (package(name), package(target))
        for name, targets in graph.items()
        for target in targets
        if package(name) != package(target)
    )
    print("```mermaid\nflowchart LR")
    for (one, other), count in sorted(edges.items()):
        if other not in ("errors", "types", "files", "logs", "anomaly", "grey"):
            print(f"    {one} -->|{count}| {other}")
    print("```")
    lengths = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    every = [one for path in files.values() for one in functions(path)]
    print(f"{len(files)} modules, median {statistics.median(lengths.values()):.0f} lines")
    print(
        f"above 400: {sorted(((n, c) for n, c in lengths.items() if c > 400), key=lambda x: -x[1])}"
    )
    print(f"longest functions: {sorted(every, key=lambda one: -one[1])[:3]}")
    print(f"most parameters: {sorted(every, key=lambda one: -one[2])[:3]}")
    print(f"cycles: {cycles(graph) or 'none'}")


def walk(scan: Path) -> None:
    """Score a scan and print the modules that it passes through."""
    passed: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        name = plain(str(frame.f_globals.get("__name__", "")))
        ours = name.startswith(("anomaly", "pipelines"))
        if event == "call" and ours and (not passed or passed[-1] != name):
            passed.append(name)

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "scans").mkdir()
        (Path(place) / "scans" / scan.name).write_bytes(scan.read_bytes())
        if (ROOT / "anomaly" / "pipelines").is_dir():
            from anomaly.pipelines.__main__ import main
        else:  # before the stages were a part of the package
            from pipelines.__main__ import main
        for counted in (False, True):  # the first run does all imports
            out = Path(place) / f"run{counted}"
            sys.argv = ["anomaly", "score", f"{place}/scans", "--bundle", "zhanglab"]
            sys.argv += ["--out", str(out), "--set", "data.workers=0"]
            with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
                sys.setprofile(note if counted else None)
                main()
            sys.setprofile(None)
    first = list(dict.fromkeys(passed))
    print(" -> ".join(name.removeprefix("anomaly.") for name in first))
    packages = [package(name) for name in passed]
    packages = [
        one for one, before in zip(packages, ["", *packages], strict=False) if one != before
    ]
    for what, way in (("modules", passed), ("packages", packages)):
        print(f"{len(set(way))} {what}, {returns(way)} returns to one already left")


def returns(way: list[str]) -> int:
    """Count the steps of a path that return to an item it has already left."""
    left: set[str] = set()
    count = 0
    for one, other in pairwise(way):
        left.add(one)
        count += other in left
    return count


def main() -> None:
    """Parse the options and print the graph or the walk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("graph")
    what.add_parser("walk").add_argument("scan", type=Path)
    options = parser.parse_args()
    if options.what == "graph":
        draw_graph()
    else:
        walk(options.scan)


if __name__ == "__main__":
    main()
