"""Damage DICOM files, zips and DICOMDIRs at random and send them through read and score.

    python benchmarks/fuzz_dicom.py --bundle FOLDER --files 20000 --seed 0

The original files are the images of pydicom (up to 200 kB), some other objects, and phantoms. A
mutation flips bits, overwrites, cuts, inserts or repeats bytes, writes an extreme number to a field
of the image header, or damages a zip or a DICOMDIR. A bundle of `benchmarks/small_bundle.py` is
sufficient. Every file must get a score or a reason; otherwise the script fails. It prints the
outcomes, the longest time without a finished file and the largest memory of any process.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pydicom
import torch

from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import choose_scans, score

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
CHUNK = 2000
LARGEST_BASE = 200_000

# Fields of group 0028 that affect decoding (rows, columns, frames, samples, bits, padding, LUTs).
FIELDS = (
    *((0x28, e) for e in (0x02, 0x04, 0x06, 0x08, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103)),
    *((0x28, e) for e in (0x120, 0x1050, 0x1051, 0x1052, 0x1053, 0x3002, 0x3006)),
    *((0x02, 0x10), (0x08, 0x16), (0x08, 0x18), (0x18, 0x1164), (0x20, 0x37), (0x18, 0x1600)),
)


def bases(folder: Path) -> list[tuple[str, bytes]]:
    """Return contents to damage, each with the suffix of its file name."""
    write_phantom_studies(folder / "phantoms", normals=6, abnormals=0, seed=0, size=(96, 84))
    paths = [*FOLDER.rglob("*"), *(folder / "phantoms").rglob("*.dcm")]
    small = [p for p in sorted(paths) if p.is_file() and 0 < p.stat().st_size <= LARGEST_BASE]
    contents = [path.read_bytes() for path in small]
    # Files with Pixel Data (tag in either byte order), and one in ten of the others.
    whole = [c for c in contents if b"\xe0\x7f\x10\x00" in c or b"\x7f\xe0\x00\x10" in c]
    whole += [c for c in contents if c not in whole][::10]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, content in enumerate(whole[:: max(1, len(whole) // 8)]):
            archive.writestr(f"study/{index}.dcm", content)
    directories = [("", path.read_bytes()) for path in sorted(FOLDER.rglob("DICOMDIR*"))]
    zips = [(".zip", packed.getvalue())] * (len(whole) // 20)
    return [*((".dcm", content) for content in whole), *zips, *directories[:2]]


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 32))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(data)), rng.choice((2, 4, 16, 200))
    data[start : start + length] = rng.randbytes(length)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice((1, 8, 300)))


def repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((8, 64, 1000))]
    data[start:start] = part * rng.choice((1, 5))


def extreme(data: bytearray, rng: random.Random) -> None:
    """Write an extreme value after the tag of one of `FIELDS`, if the file has one."""
    group, element = rng.choice(FIELDS)
    tag = group.to_bytes(2, "little") + element.to_bytes(2, "little")
    place = data.find(tag)
    if place < 0:
        flip(data, rng)
        return
    value = rng.choice((b"\xff\xff", b"\0\0", b"\xff\x7f", b"\x01\0", b"\0\x80", b"99"))
    at = place + rng.choice((4, 6, 8, 10))
    data[at : at + 2] = value


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, overwrite, cut, insert, repeat, extreme, extreme),
)


def write_chunk(folder: Path, sources: list[tuple[str, bytes]], numbers: range, seed: int) -> None:
    folder.mkdir()
    for number in numbers:
        rng = random.Random(f"{seed} {number}")  # noqa: S311 - no secret
        ending, content = rng.choice(sources)
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if data:
                rng.choice(MUTATIONS)(data, rng)
        (
            folder / f"{number:06d}{rng.choice(('', ending)) if ending == '.dcm' else ending}"
        ).write_bytes(data)


def main() -> None:
    """Damage files, read and score them, and count the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = ["data.workers=2", "data.seconds=10", "intensity.colour=luminance"]
    totals: Counter[str] = Counter()
    began, slowest, rows_in_all = time.perf_counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        sources = bases(Path(place))
        print(f"{len(sources)} bases, seed {options.seed}")
        for start in range(0, options.files, CHUNK):
            numbers = range(start, min(start + CHUNK, options.files))
            scans, run = Path(place) / f"scans-{start}", RunFolder(Path(place) / f"run-{start}")
            write_chunk(scans, sources, numbers, options.seed)
            at = time.perf_counter()
            inputs = choose_scans(run, scans, options.bundle, settings)
            config, manifest = inputs.config, inputs.manifest
            results = score(run, config, run.bundle, manifest, torch.device("cpu"))
            slowest = max(slowest, time.perf_counter() - at)
            said = results.read()[0]
            named = {Path(row.path).parts[0] for row in manifest.rows}
            lost = {path.name for path in scans.iterdir()} - named
            empty = {name for name in lost if not _has_members(scans / name)}
            assert lost == empty, f"not accounted for: {sorted(lost - empty)[:5]}"
            assert len(said) == len(manifest.rows), "rows of the table without a result"
            totals["zip without a member"] += len(empty)
            totals.update("scored" if row.status == "scored" else row.reason for row in said)
            rows_in_all += len(said)
            print(f"{numbers.stop} files, {rows_in_all} rows, {time.perf_counter() - began:.0f} s")
    for reason, count in totals.most_common():
        print(f"| {reason} | {count} |")
    peaks = [
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(
        f"every file is accounted for; slowest chunk of {CHUNK}: {slowest:.0f} s; largest memory: "
        f"{peaks[0]:.0f} MiB scoring, {peaks[1]:.0f} MiB decoding"
    )


def _has_members(path: Path) -> bool:
    """Whether a zip still lists a member; an empty zip needs no score or reason."""
    with zipfile.ZipFile(path) as archive:
        return bool(archive.namelist())


if __name__ == "__main__":
    main()
