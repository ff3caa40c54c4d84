"""Score the DICOM test files of pydicom: print a score or a reason for each.

    python benchmarks/dicom_files.py --bundle zhanglab

Prints a Markdown table: every file, its transfer syntax, whether the installed decoders decode its
pixels, and the result of scoring (with `intensity.colour = luminance`, so that colour images are
scored). The scores have no meaning, because the bundle was not trained for such scans.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pydicom
import torch
from pydicom.pixels.utils import pixel_array

from anomaly.config import override
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import read_frames
from anomaly.errors import ScanError
from anomaly.pipelines.prepare import scan_folder
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import choose_scans, score
from anomaly.store.bundle_files import find_bundle
from anomaly.types import Scan

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"


def decodes(path: Path) -> str:
    """Whether the pixels of the first frame decode: "yes", "no", or "-" if there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path)
            kinds = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
            if not any(kind in dataset for kind in kinds):
                return "-"
            pixel_array(dataset, index=0, raw=True)
        except Exception as error:
            return "-" if "magic" in str(error) or "DICM" in str(error) else "no"
    return "yes"


def alone(path: Path) -> str:
    """Read a single file and describe the result."""
    policy = IntensityPolicy(colour="luminance")
    try:
        found = read_frames(path, policy)
    except ScanError as error:
        return error.reason
    kinds = Counter("a scan" if isinstance(one, Scan) else one.reason for one in found)
    return ", ".join(f"{n} {k}" if n > 1 else k for k, n in kinds.most_common())


def syntax(path: Path) -> str:
    """Name of the transfer syntax of a file."""
    try:
        uid = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", None)
    except pydicom.errors.InvalidDicomError:
        return "-"
    return "-" if uid is None else uid.name


def main() -> None:
    """Score the folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("zhanglab"))
    parser.add_argument("--top", action="store_true", help="only files at the top of the folder")
    options = parser.parse_args()
    settings = ["intensity.colour=luminance"]
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place) / "run")
        inputs = choose_scans(run, FOLDER, find_bundle(options.bundle), settings)
        manifest = scan_folder(run, override(inputs.config, settings))
        results = score(run, replace(inputs, manifest=manifest), torch.device("cpu"))
        said = {row.key: row for row in results.read()[0]}
    by_file: dict[str, Counter[str]] = {}
    for row in manifest.rows:
        if options.top and "/" in row.path:
            continue
        score_row = said[row.key]
        outcome = "scored" if score_row.status == "scored" else score_row.reason
        by_file.setdefault(row.path, Counter())[outcome] += 1
    print("| file | transfer syntax | pixels decode | read alone | in one run |")
    print("|---|---|---|---|---|")
    totals: Counter[str] = Counter()
    for name, outcomes in sorted(by_file.items()):
        taken = decodes(FOLDER / name) if (FOLDER / name).exists() else "-"
        totals[f"decode {taken}"] += 1
        totals["scored files" if outcomes["scored"] else "files with a reason only"] += 1
        text = ", ".join(f"{n} {k}" if n > 1 else k for k, n in outcomes.most_common())
        path = FOLDER / name
        print(f"| {name} | {syntax(path)} | {taken} | {alone(path)} | {text} |")
    print(f"\n{len(by_file)} files: {dict(totals)}")


if __name__ == "__main__":
    main()
