"""Kill scoring processes at random moments, and compare the results with an undisturbed run.

    python benchmarks/kill_storm.py --data DIR --bundle zhanglab --scans 5000 --kills 50

DIR contains JPEG files, which are repeated with different bytes; DICOM phantoms and ten kinds of
broken files are added. One process scores everything undisturbed. Then three processes score it in
a new run, while one after another is killed (SIGKILL) and restarted. At the end every file must
have one row, equal bit for bit, and no temporary file may be left.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.data.table.manifest import Manifest
from anomaly.pipelines.run import RunFolder

WORKERS = 3
DICOM_SHARE, BROKEN_SHARE = 0.02, 0.02


def make_archive(data: Path, folder: Path, scans: int) -> None:
    """Write JPEG files, DICOM files and broken ones."""
    sources = sorted(data.rglob("*.jp*g"))
    dicoms, broken = round(DICOM_SHARE * scans), round(BROKEN_SHARE * scans)
    write_phantom_studies(folder / "dicom", normals=dicoms, abnormals=0, seed=0, size=(256, 224))
    files = sorted((folder / "dicom").rglob("*.dcm"))
    for extra in files[dicoms:]:
        extra.unlink()
    images = folder / "jpeg"
    images.mkdir()
    for index in range(scans - dicoms - broken):
        content = sources[index % len(sources)].read_bytes()
        # Bytes after the end of the image change the content, but not the picture.
        (images / f"{index:06d}.jpeg").write_bytes(content + index.to_bytes(4, "big"))
    good = (sources[0].read_bytes(), files[0].read_bytes())
    for index in range(broken):
        name, content = _broken(index, good)
        (folder / f"broken-{index:04d}{name}").write_bytes(content)


def _broken(index: int, good: tuple[bytes, bytes]) -> tuple[str, bytes]:
    """Return suffix and content of a file broken in one of ten ways, by index; all differ."""
    mark, (jpeg, dicom) = index.to_bytes(4, "big"), good
    png = _png(np.full((64, 64), 90, dtype=np.uint8))
    colour = _png(np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    ways = (
        (".jpeg", b""),
        (".jpeg", jpeg[: len(jpeg) // 2 + index]),
        (".jpeg", b"not an image" + mark),
        (".dcm", dicom[: len(dicom) // 3 + index]),
        (".dcm", dicom[:132] + mark),
        (".dcm", bytes(128) + b"DICM" + bytes(64) + mark),
        (".png", png[: len(png) // 2] + mark),
        (".png", png + mark),  # constant
        (".png", colour),
        (".txt", b"a letter" + mark),
    )
    return ways[index % len(ways)]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def score(run: RunFolder) -> subprocess.Popen[bytes]:
    """Start a scoring process with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "anomaly", "score", str(run.path), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def storm(run: RunFolder, kills: int, pause: float) -> tuple[int, Counter[str]]:
    """Kill and restart processes, then let them finish; return the kills and a count by phase."""
    rng = random.Random(0)  # noqa: S311
    workers = [score(run) for _ in range(WORKERS)]
    done, moments = 0, Counter[str]()
    while done < kills:
        time.sleep(rng.uniform(0, 2 * pause))
        victim = rng.randrange(WORKERS)
        if all(worker.poll() is not None for worker in workers):
            break  # everything is scored
        moments["at work" if list(run.results.folder.glob("*.lease")) else "starting"] += 1
        workers[victim].kill()
        workers[victim].wait()
        done += 1
        workers[victim] = score(run)
    for worker in workers:
        worker.wait()
    return done, moments


def main() -> None:
    """Make the archive, do both runs and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="zhanglab")
    parser.add_argument("--scans", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pause", type=float, default=8.0, help="Mean seconds between kills.")
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--work", type=Path, required=True, help="Empty folder to work in.")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    scans, serial = options.work / "scans", RunFolder(options.work / "serial")
    make_archive(options.data, scans, options.scans)
    began = time.perf_counter()
    command = ["score", str(scans), "--bundle", options.bundle, "--out", str(serial.path)]
    command += ["--set", f"results.shard={options.shard}", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "anomaly", *command], check=True, env=environment)
    print(
        f"undisturbed, one process of one thread: {time.perf_counter() - began:.0f} s", flush=True
    )
    stormy = RunFolder(options.work / "stormy")
    shutil.copytree(serial.path, stormy.path)
    shutil.rmtree(stormy.results.folder)
    stormy.scores_csv.unlink()
    began = time.perf_counter()
    done, moments = storm(stormy, options.kills, options.pause)
    print(
        f"{WORKERS} processes, {done} killed ({dict(moments)}): "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )
    expected, found = serial.results.read()[0], stormy.results.read()[0]
    listed = Manifest.read(stormy.manifest).rows
    left = [p.name for p in stormy.results.folder.iterdir() if p.suffix in (".tmp", ".lease")]
    print(f"{len(listed)} files, {len(found)} rows, equal bit for bit: {found == expected}")
    print(f"not scored: {dict(Counter(row.reason for row in found if row.reason))}")
    print(f"temporary files left: {left}")
    same = [Counter(r.key for r in rows) for rows in (found, listed)]
    if found != expected or left or same[0] != same[1]:
        raise SystemExit("something was lost, done twice, changed or left behind")


if __name__ == "__main__":
    main()
