"""Record the results of scoring to the last bit, and compare two records.

    python benchmarks/golden.py record --bundle zhanglab --scans FOLDER --out before.json
    python benchmarks/golden.py compare before.json after.json

A record contains every row (status, score, p-value, flag, regions, features), the DICOM objects and
the data of the report page, without versions, times and other values that differ between runs. Both
records need the same folder, bundle and machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
from pydicom import dcmread
from pydicom.dataset import Dataset

ROOT = Path(__file__).parents[1]
SITE_KEY = "00" * 32
"""The same key for every record, because all results contain pseudonyms."""

TIMES = (
    *("SoftwareVersions", "ContentDate", "ContentTime", "InstanceCreationDate"),
    *("InstanceCreationTime", "SeriesDate", "SeriesTime", "AcquisitionDateTime", "DateTime"),
    *("ObservationDateTime", "PresentationCreationDate", "PresentationCreationTime"),
    *("ContributionDateTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)


def command(*arguments: object) -> None:
    """Run a command of the toolkit; if it fails, exit with its output."""
    done = subprocess.run(
        [Path(sys.executable).with_name("anomaly"), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")


def exact(value: Any) -> Any:
    """Convert a value so that every bit of its floats is visible."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return value


def rows_of(run: Path) -> dict[str, Any]:
    """Read the rows of a scored run, by pseudonym."""
    parts = sorted((run / "parts").glob("part-*.parquet"))
    rows = [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]
    return {row["key"]: exact(row) for row in rows}


def object_of(path: Path) -> str:
    """Hash a DICOM object without versions and times."""
    dataset = dcmread(path)

    def drop(parent: Dataset, element: Any) -> None:
        if element.keyword in TIMES:
            del parent[element.tag]

    dataset.walk(drop)
    return hashlib.sha256(str(dataset).encode() + dataset.get("PixelData", b"")).hexdigest()


def page_of(run: Path) -> dict[str, str]:
    """Hash the data of the report page, without versions and times, and the images of the page."""
    page = (run / "report" / "index.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    images = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "report" / "images").iterdir())
    }
    plain = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00| UTC)?", "", data)
    return {"data": hashlib.sha256(plain.encode()).hexdigest(), **images}


def record(bundle: str, scans: Path) -> dict[str, Any]:
    """Score a folder, write the report and DICOM objects, and return the record."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        check = hashlib.sha256(bytes.fromhex(SITE_KEY)).hexdigest()[:8]
        (run / "site.key").write_text(f"{SITE_KEY} {check}\n")
        (run / "site.key").chmod(0o600)
        options = ("--set", "intensity.colour=luminance")
        command("score", scans.resolve(), "--bundle", bundle, "--out", run, *options)
        command("report", run)
        command("dicom", run)
        objects = {path.name: object_of(path) for path in sorted((run / "dicom").glob("*.dcm"))}
        return {"rows": rows_of(run), "objects": objects, "page": page_of(run)}


def compare(before: Path, after: Path) -> bool:
    """Print which parts of two records are equal; return whether all are."""
    first, second = (json.loads(path.read_text()) for path in (before, after))
    same = True
    for part in first:
        one, two = first[part], second[part]
        differ = sorted(name for name in {*one, *two} if one.get(name) != two.get(name))
        print(f"{part}: {len(one)} before, {len(two)} after, {len(differ)} differ {differ[:5]}")
        same = same and not differ
    return same


def main() -> None:
    """Parse the options, then record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    recording = what.add_parser("record")
    recording.add_argument("--bundle", default="zhanglab")
    recording.add_argument("--scans", type=Path, required=True)
    recording.add_argument("--out", type=Path, required=True)
    comparing = what.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.what == "record":
        found = record(options.bundle, options.scans)
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True))
        print({name: len(part) for name, part in found.items()})
    elif not compare(options.before, options.after):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
