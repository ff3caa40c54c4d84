"""The pages of docs/extending: what they add works, from outside of the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.data.synthetic.phantom_dicom import write_phantom_studies

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("document", [p for p in PAGES if code_of(p)], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(document: Path, tmp_path: Path) -> None:
    done = run(code_of(document), tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_registry_has_a_page_with_code() -> None:
    assert {page.stem for page in PAGES if code_of(page)} == {
        *("schedule", "feature-group", "detector-kind", "reader", "output-object", "command"),
        "report-panel",
    }


AGAIN = [
    "from anomaly.cdm.schedules import *; register_schedule('cosine', cosine)",
    "from anomaly.detection.features import *; register_group(GROUPS['nll'])",
    "from anomaly.detection.kinds import *; register_kind(*KINDS['mixture'])",
    "from anomaly.data.readers.registry import *; register_reader('x', ('.png',), print)",
    "from anomaly.data.readers.registry import *; register_reader('x', ('.dcm',), print)",
    "from anomaly.data.readers.registry import *; register_reader('x', ('.zip',), print)",
    "from anomaly.data.readers.registry import *\n"
    "[register_reader(kind, ('.mha',), print) for kind in 'xy']",
    "from anomaly.reporting.dicom.objects import *; register_object('report', print)",
    "from anomaly.reporting.html.panels import *; register_panel(PANELS['score'])",
]
NO_DOT = "from anomaly.data.readers.registry import *; register_reader('x', ('ng',), print)"

REFUSED = """
import json, sys
errors = {}
for code in json.load(sys.stdin):
    try:
        exec(code, {})
    except Exception as error:
        errors[code] = f"{type(error).__name__}: {error}"
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    """Return what each line is refused with, in a process whose registries are its own."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED],
        input=json.dumps([*AGAIN, NO_DOT]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    errors: dict[str, str] = json.loads(done.stdout)
    return errors


@pytest.mark.parametrize("again", AGAIN)
def test_nothing_takes_the_place_of_what_is_there(again: str, refused: dict[str, str]) -> None:
    assert refused[again].startswith("ConfigError: there is a")


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    for name, count in (("scans", 3), ("normals", 20)):
        studies = write_phantom_studies(
            tmp_path / f"{name}-studies", normals=count, abnormals=0, seed=count, size=(64, 56)
        )
        (tmp_path / name).mkdir()
        for index, file in enumerate(studies.normal):
            source = tmp_path / f"{name}-studies" / file
            (tmp_path / name / f"{index}.dcm").write_bytes(source.read_bytes())
    (tmp_path / "scan.dcm").write_bytes((tmp_path / "scans" / "0.dcm").read_bytes())
    script = tmp_path / "script.py"
    script.write_text(code_of(ROOT / "README.md"))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 4
    assert (tmp_path / "bundle" / "bundle.json").exists()


def test_an_ending_without_a_dot_takes_no_other_kind_of_file(refused: dict[str, str]) -> None:
    assert "expected ends of names such as '.mha'" in refused[NO_DOT]


def test_a_reader_of_an_installed_package_is_known_to_processes_that_decode(tmp_path: Path) -> None:
    """One that cannot be loaded is said, and is no fault of the scan that is read."""
    (tmp_path / "raw8.py").write_text(
        code_of(ROOT / "docs" / "extending" / "reader.md").partition("rng = ")[0]
    )
    (tmp_path / "raw8-1.dist-info").mkdir()
    points = tmp_path / "raw8-1.dist-info" / "entry_points.txt"
    (points.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: raw8\nVersion: 1\n")
    points.write_text("[anomaly.readers]\npgm = raw8\n")
    (tmp_path / "scan.pgm").write_text(
        f"P2 64 64 255 {' '.join(str(i % 251) for i in range(64 * 64))}"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import anomaly\n"
        "if __name__ == '__main__':\n"
        "    (verdict,) = anomaly.load('zhanglab').score_many(['scan.pgm'], workers=1)\n"
        "    print(verdict.reason, verdict.score)\n"
    )

    def answer() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    good = answer()
    assert good.returncode == 0, good.stderr
    assert float(good.stdout.split()[-1]) > 0
    points.write_text("[anomaly.readers]\npgm = nothing_of_that_name\n")
    bad = answer()
    assert bad.returncode == 1
    assert "of an installed package cannot be loaded" in bad.stderr
