"""Who may import whom, and where a thing may be said: read from the syntax tree, not run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    # In the checkout `anomaly/pipelines` is a link: stages are imported as a part of the package.
    parts = ("anomaly", *parts) if parts[0] == "pipelines" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for top in ("anomaly", "pipelines") for p in (ROOT / top).rglob("*.py")}
LIBRARY = [name for name in FILES if name.split(".")[:2] != ["anomaly", "pipelines"]]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """Modules that a module names in any import statement, in functions too.

    ``from anomaly import errors`` counts as ``anomaly.errors``, a name of a module as that module.
    """
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in FILES else node.module for full in inside}
    return frozenset(found)


def calls(name: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(name)) if isinstance(node, ast.Call))


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def members(part: str) -> list[str]:
    found = [name for name in FILES if within(name, part)]
    assert found, f"there is no {part}"
    return found


def tops(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports(name)}


def test_the_walk_sees_imports_inside_functions() -> None:
    # Commands import their stages there, to keep `--help` fast.
    assert "anomaly.pipelines.train" in imports("anomaly.pipelines.cli.train")


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("anomaly.errors", ()),
        ("anomaly.files", ("anomaly.errors",)),
        ("anomaly.grey", ()),
        ("anomaly.types", ("anomaly.grey", "anomaly.errors")),
        ("anomaly.regions", ("anomaly.types",)),
        ("anomaly.dicom", ("anomaly.dicom", "anomaly.grey", "anomaly.types", "anomaly.errors")),
        ("anomaly.cdm", ("anomaly.cdm", "anomaly.errors")),
        ("anomaly.logs", ()),
        ("anomaly.store.readings", ("anomaly.errors",)),
        (
            "anomaly.data",
            (
                "anomaly.data",
                "anomaly.dicom",
                "anomaly.files",
                "anomaly.grey",
                "anomaly.types",
                "anomaly.errors",
                "anomaly.logs",
            ),
        ),
        (
            "anomaly.detection",
            (
                "anomaly.detection",
                "anomaly.cdm",
                "anomaly.types",
                "anomaly.errors",
                "anomaly.logs",
                "anomaly.parallel",
            ),
        ),
        ("anomaly.detection.calibration", ("anomaly.errors",)),
        ("anomaly.detection.detector", ("anomaly.errors", "anomaly.detection.kinds")),
        ("anomaly.detection.kinds", ("anomaly.detection.kinds", "anomaly.errors")),
        ("anomaly.detection.blur", ()),
        (
            "anomaly.detection.local",
            ("anomaly.errors", "anomaly.detection.blur", "anomaly.detection.placement"),
        ),
        ("anomaly.parallel", ()),
        ("anomaly.detection.placement", ()),
        ("anomaly.detection.selection", ("anomaly.errors",)),
        ("anomaly.detection.plausibility", ()),
        (
            "anomaly.training.loop",
            (
                *("anomaly.cdm", "anomaly.training.checkpoint", "anomaly.training.processes"),
                *("anomaly.training.settings", "anomaly.training.state"),
                *("anomaly.errors", "anomaly.logs", "anomaly.parallel"),
            ),
        ),
        (
            "anomaly.training.state",
            (
                *("anomaly.cdm", "anomaly.training.processes", "anomaly.training.settings"),
                *("anomaly.errors", "anomaly.logs", "anomaly.parallel"),
            ),
        ),
        ("anomaly.training.processes", ()),
        ("anomaly.training.settings", ("anomaly.errors",)),
        ("anomaly.training.validation", ("anomaly.cdm", "anomaly.training.checkpoint")),
        ("anomaly.training.checkpoint", ("anomaly.errors", "anomaly.files")),
        ("anomaly.evaluation.metrics", ("anomaly.errors",)),
        (
            "anomaly.evaluation",
            (
                *("anomaly.evaluation", "anomaly.training", "anomaly.store", "anomaly.detection"),
                *("anomaly.config", "anomaly.data", "anomaly.errors", "anomaly.logs"),
            ),
        ),
        ("anomaly.evaluation.roc", ("anomaly.errors", "anomaly.evaluation.metrics")),
        (
            "anomaly.store.results",
            (
                *("anomaly.errors", "anomaly.files", "anomaly.store.database"),
                *("anomaly.store.parts", "anomaly.store.provenance", "anomaly.store.rows"),
            ),
        ),
        ("anomaly.store.database", ("anomaly.errors", "anomaly.store.rows")),
        (
            "anomaly.store.parts",
            (
                *("anomaly.errors", "anomaly.files"),
                *("anomaly.store.provenance", "anomaly.store.rows"),
            ),
        ),
        (
            "anomaly.store",
            (
                *("anomaly.store", "anomaly.config", "anomaly.cdm", "anomaly.detection"),
                *("anomaly.data", "anomaly.types", "anomaly.errors", "anomaly.files"),
                "anomaly.logs",
            ),
        ),
        (
            "anomaly.scoring",
            (
                *("anomaly.scoring", "anomaly.store", "anomaly.config", "anomaly.detection"),
                *(
                    "anomaly.cdm",
                    "anomaly.data",
                    "anomaly.types",
                    "anomaly.errors",
                    "anomaly.regions",
                ),
                *("anomaly.files", "anomaly.logs", "anomaly.progress", "anomaly.parallel"),
            ),
        ),
        (
            "anomaly.training",
            (
                *("anomaly.training", "anomaly.config", "anomaly.detection", "anomaly.cdm"),
                *("anomaly.data", "anomaly.types", "anomaly.errors", "anomaly.files"),
                *("anomaly.logs", "anomaly.progress", "anomaly.parallel"),
            ),
        ),
        (
            "anomaly.pacs",
            ("anomaly.pacs", "anomaly.errors", "anomaly.files", "anomaly.types", "anomaly.logs"),
        ),
        (
            "anomaly.reporting",
            (
                "anomaly.reporting",
                "anomaly.dicom",
                "anomaly.files",
                "anomaly.types",
                "anomaly.regions",
                "anomaly.errors",
                "anomaly.store.results",
            ),
        ),
    ],
)
def test_a_part_imports_only_its_neighbours(part: str, allowed: tuple[str, ...]) -> None:
    for name in members(part):
        ours = {m for m in imports(name) if within(m, "anomaly")} - {"anomaly", "anomaly.version"}
        strangers = {m for m in ours if not any(within(m, a) for a in allowed)}
        assert not strangers, f"{name} imports {sorted(strangers)}"


@pytest.mark.parametrize(
    "part",
    [
        "anomaly.cdm",
        "anomaly.training.checkpoint",
        "anomaly.training.loop",
        "anomaly.training.processes",
        "anomaly.training.settings",
        "anomaly.training.state",
        "anomaly.training.validation",
    ],
)
def test_the_maths_knows_torch_alone(part: str) -> None:
    for name in members(part):
        assert tops(name) - set(sys.stdlib_module_names) <= {"torch", "anomaly"}, name


@pytest.mark.parametrize(
    "part",
    [
        "anomaly.detection.calibration",
        "anomaly.detection.detector",
        "anomaly.detection.heatmap",
        "anomaly.detection.kinds",
        "anomaly.detection.local",
        "anomaly.detection.plausibility",
        "anomaly.detection.scoring",
        "anomaly.detection.selection",
        "anomaly.reporting",
        "anomaly.pacs",
        "anomaly.evaluation.metrics",
        "anomaly.evaluation.roc",
        "anomaly.store.bundle_files",
        "anomaly.store.database",
        "anomaly.store.parts",
        "anomaly.store.results",
        "anomaly.errors",
        "anomaly.types",
        "anomaly.regions",
    ],
)
def test_statistics_and_reports_need_no_torch(part: str) -> None:
    for name in members(part):
        assert not tops(name) & {"torch", "monai", "torchvision"}, name


def test_nothing_in_the_library_imports_the_pipelines() -> None:
    strangers = {
        name for name in LIBRARY for module in imports(name) if within(module, "anomaly.pipelines")
    }
    assert strangers == {"anomaly.__main__"}  # the command, by another name


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        (
            "pydicom",
            {
                "anomaly.data.readers.dicom",
                "anomaly.data.readers.dicom_header",
                "anomaly.data.readers.dicom_media",
                "anomaly.data.readers.dicom_pixels",
                "anomaly.dicom.codestream",
                "anomaly.dicom.frames",
                "anomaly.dicom.geometry",
                "anomaly.dicom.grey",
                "anomaly.dicom.tags",
                "anomaly.data.synthetic.phantom_dicom",
                "anomaly.pacs.client.dicomweb.search",
                "anomaly.pacs.client.dicomweb.store",
                "anomaly.pacs.client.dimse",
                "anomaly.pacs.identity",
                "anomaly.pacs.node.incoming",
                "anomaly.pacs.client.instances",
                "anomaly.pacs.node.listener",
                "anomaly.reporting.dicom.objects",
                "anomaly.reporting.dicom.images",
                "anomaly.reporting.dicom.structured_report",
                "anomaly.reporting.dicom.source",
            },
        ),
        ("pebble", {"anomaly.data.readers.isolation"}),
        (
            "pynetdicom",
            {
                "anomaly.pacs.client.dimse",
                "anomaly.pacs.node.incoming",
                "anomaly.pacs.node.listener",
            },
        ),
        ("dicomweb_client", {"anomaly.pacs.client.dicomweb.connection"}),
        (
            "requests",
            {
                "anomaly.pacs.client.bounded",
                "anomaly.pacs.client.dicomweb.connection",
                "anomaly.pacs.client.dicomweb.search",
                "anomaly.pacs.client.sessions",
            },
        ),
        (
            "sqlite3",
            {
                "anomaly.store.readings",
                "anomaly.pacs.node.database",
                "anomaly.pacs.node.listener",
                "anomaly.pacs.node.spool",
            },
        ),
        (
            "highdicom",
            {
                "anomaly.reporting.dicom.images",
                "anomaly.reporting.dicom.structured_report",
                "anomaly.reporting.dicom.source",
            },
        ),
        (
            "monai",
            {
                "anomaly.data.images.augmentation",
                "anomaly.detection.baselines.autoencoders",
            },
        ),
        ("nibabel", {"anomaly.data.readers.nifti"}),
        ("tifffile", {"anomaly.data.readers.tiff"}),
        ("matplotlib", {"anomaly.reporting.plots.figures", "anomaly.reporting.plots.charts"}),
        ("jinja2", {"anomaly.reporting.html.files"}),
        ("markupsafe", {"anomaly.reporting.html.files", "anomaly.reporting.pdf.study"}),
        ("weasyprint", {"anomaly.reporting.pdf.study"}),
        (
            "sklearn",
            {
                "anomaly.detection.baselines.classical",
                "anomaly.detection.baselines.denoiser",
                "anomaly.detection.kinds.components",
                "anomaly.detection.kinds.ledoit_wolf",
                "anomaly.detection.kinds.mixture",
                "anomaly.evaluation.metrics",
                "anomaly.evaluation.benchmark.tables",
            },
        ),
    ],
)
def test_a_package_has_its_homes(package: str, homes: set[str]) -> None:
    assert {name for name in FILES if package in tops(name)} == homes


def test_the_command_line_has_its_home() -> None:
    homes = {name for name in FILES if "typer" in tops(name)}
    assert all(
        within(name, "anomaly.pipelines.cli") for name in homes - {"anomaly.pipelines.__main__"}
    )


def test_nothing_unpickles_or_executes() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for name in FILES:
        assert not tops(name) & forbidden, name
        for call in calls(name):
            said = ast.unparse(call.func)
            assert said not in ("eval", "exec", "compile", "__import__"), f"{name}: {said}()"
            assert said not in ("yaml.load", "yaml.load_all", "yaml.unsafe_load"), name
            arguments = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if said == "torch.load":
                assert arguments.get("weights_only") == "True", name
            if said == "np.load":
                assert arguments.get("allow_pickle", "False") == "False", name
            assert arguments.get("shell") != "True", name


def test_the_library_never_prints() -> None:
    for name in FILES:
        assert "print" not in {ast.unparse(call.func) for call in calls(name)}, name


def test_no_bare_except() -> None:
    for name in FILES:
        for node in ast.walk(tree(name)):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), name


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert [name for name in FILES if drawers & set(name.split("."))] == []


def test_nats_become_bits_in_one_file() -> None:
    """``log 2`` and the logarithm of base 2 belong to bits/dim, defined once."""

    def converts(call: ast.Call) -> bool:
        function = ast.unparse(call.func).split(".")[-1]
        two = bool(call.args) and ast.unparse(call.args[0]) in ("2", "2.0")
        return function == "log2" or (function == "log" and two)

    assert {name for name in FILES if any(map(converts, calls(name)))} == {"anomaly.cdm.density"}


def test_a_logit_is_picked_in_one_file() -> None:
    homes = {
        name for name in FILES for call in calls(name) if ast.unparse(call.func).endswith(".gather")
    }
    assert homes == {"anomaly.cdm.density"}


def test_a_score_meets_its_threshold_in_one_place() -> None:
    """A score meets a threshold in `calibration` and in the stage that applies it, no further."""
    homes = {
        name
        for name in FILES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Compare) and ".threshold(" in ast.unparse(node)
    }
    assert homes <= {
        "anomaly.detection.calibration",
        "anomaly.scoring.job",
        "anomaly.scoring.judging",
    }


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_module_has_a_docstring(name: str) -> None:
    said = ast.get_docstring(tree(name)) or ""
    assert len(said) > 20


@pytest.mark.parametrize("folder", sorted({p.parent for p in FILES.values()}))
def test_every_folder_is_a_package(folder: Path) -> None:
    assert (folder / "__init__.py").is_file()


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_all_names_what_exists(name: str) -> None:
    """A star import of any module succeeds, and no name is promised twice."""
    promised: list[str] = []
    defined: set[str] = set()
    body = tree(name).body
    for block in [node for node in body if isinstance(node, ast.If)]:
        body = [*body, *block.body]  # what type checkers see
    for node in body:
        if isinstance(node, ast.Assign):
            names = {t.id for t in node.targets if isinstance(t, ast.Name)}
            if "__all__" in names:
                promised = ast.literal_eval(node.value)
            defined |= names
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    assert set(promised) <= defined
    assert len(promised) == len(set(promised))


def test_help_waits_for_neither_torch_nor_monai() -> None:
    script = (
        "import sys; sys.argv = ['anomaly', '--help']\n"
        "from anomaly.pipelines.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'monai', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "prepare" in done.stdout
    assert "Not a diagnosis" in done.stdout.replace("\n", " ")


HIDING = {"at_work", "found", "lent", "looked", "said", "taken", "told", "wanted"}
"""Names that say what happened to a thing and not what it is."""


def test_names_say_what_a_thing_is() -> None:
    for name in FILES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                chosen = node.id
            elif isinstance(node, ast.arg):
                chosen = node.arg
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                chosen = node.name.strip("_")
            else:
                continue
            assert chosen not in HIDING, f"{name}:{node.lineno}: {chosen}"
