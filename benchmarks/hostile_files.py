"""Score a folder of bombs, special files and hostile names, and measure the memory used.

    python benchmarks/hostile_files.py --bundle zhanglab --work EMPTY_FOLDER

Prints a row per kind, with the number of files and their outcomes; then the peak resident memory of
the command itself and of its largest decoder, and whether the good scans among the hostile files
get the same scores as alone.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from anomaly.data.synthetic.phantom import draw_phantom
from anomaly.data.synthetic.phantom_dicom import write_phantom_studies

GOOD = 12
"""Number of phantoms among the hostile files."""

MEBIBYTE = 2**20

Rows = dict[str, tuple[str, str]]
"""Reason and score by path."""

ESCAPES = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "a\nb",
    "a\rb",
    "\u202eabc",
    "=1+1",
    "<script>",
    "\x9b31m",
]


def png(width: int, height: int, rows: int) -> bytes:
    """Encode a PNG whose header claims a size and which contains `rows` rows of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    packer = zlib.compressobj(9)
    line = bytes(width + 1)
    body = b"".join(packer.compress(line) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return begin + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(width: int, height: int, *, pages_loop: bool = False) -> bytes:
    """Encode a deflated TIFF of zeros in one strip; optionally its page links to itself as next."""
    strip = zlib.compress(bytes(50 * MEBIBYTE), 9)
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),  # Adobe deflate
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(strip)),
    ]
    start = 8 + len(strip)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    following = struct.pack("<I", start if pages_loop else 0)
    directory = struct.pack("<H", len(tags)) + entries + following
    return b"II*\0" + struct.pack("<I", start) + strip + directory


def jpeg(width: int, height: int) -> bytes:
    """Encode a small JPEG whose frame header claims another size."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def nifti(shape: tuple[int, int, int], size: int) -> bytes:
    """Compress a NIfTI file that claims a shape and contains `size` bytes of zeros."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    body = packer.compress(bytes(header))
    for _ in range(size // MEBIBYTE):
        body += packer.compress(bytes(MEBIBYTE))
    return body + packer.flush()


def zipped(path: Path, members: int, size: int) -> None:
    """Write a zip with `members` members of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(members):
            file.writestr(f"{number}.png", bytes(size))


def dicom(template: Path, path: Path, change: Callable[[Dataset], None]) -> None:
    """Write a DICOM file with one change."""
    dataset = dcmread(template)
    change(dataset)
    dataset.save_as(path, enforce_file_format=False)


def deflated(dataset: Dataset) -> None:
    """Give a data set 1 GiB of zeros that deflate to 1 MiB."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091001, "OB", bytes(1024 * MEBIBYTE))


def nested(content: bytes, depth: int) -> bytes:
    """Insert nested sequences of undefined length in front of the pixels."""
    sequence = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    header, tag, pixels = content.rpartition(b"\xe0\x7f\x10\x00")
    return header + sequence * depth + end * depth + tag + pixels


def write_bombs(folder: Path, template: Path) -> None:
    """Write files that claim a far larger size than they have, or unpack to one."""
    folder.mkdir()
    for name, size in {"a": (60_000, 60_000), "b": (2**31 - 1, 1), "c": (30_000, 30_000)}.items():
        (folder / f"{name}.png").write_bytes(png(*size, 3))
    (folder / "full.png").write_bytes(png(30_000, 10_000, 10_000))
    for name, size in {"a": (65_535, 65_535), "b": (2**31, 2**31), "c": (9_000, 9_000)}.items():
        (folder / f"{name}.tif").write_bytes(tiff(*size))
    (folder / "loop.tif").write_bytes(tiff(100, 100, pages_loop=True))
    for name, size in {"a": (65_535, 65_535), "b": (20_000, 20_000)}.items():
        (folder / f"{name}.jpg").write_bytes(jpeg(*size))
    (folder / "a.nii.gz").write_bytes(nifti((30_000, 30_000, 30_000), 0))
    (folder / "b.nii.gz").write_bytes(nifti((512, 512, 300), 4096 * MEBIBYTE))
    (folder / "c.nii.gz").write_bytes(gzip.compress(gzip.compress(bytes(512 * MEBIBYTE))))
    zipped(folder / "a.zip", 1, 1024 * MEBIBYTE)
    zipped(folder / "b.zip", 20, 100 * MEBIBYTE)
    zipped(folder / "c.zip", 250_000, 0)

    def set_tag(keyword: str, value: object) -> Callable[[Dataset], None]:
        return lambda dataset: setattr(dataset, keyword, value)

    def rle(dataset: Dataset) -> None:
        from pydicom.encaps import encapsulate

        header = struct.pack("<16I", 1, 64, *[0] * 14)
        dataset.file_meta.TransferSyntaxUID = RLELossless
        dataset.Rows = dataset.Columns = 60_000
        dataset.PixelData = encapsulate([header + b"\x81\x00" * 2**20])

    changes = {
        "frames": set_tag("NumberOfFrames", 2**31 - 1),
        "rows": set_tag("Rows", 65_535),
        "deflated": deflated,
        "rle": rle,
        "bits": set_tag("BitsAllocated", 64_000),
        "samples": set_tag("SamplesPerPixel", 60_000),
    }
    for depth in (30, 300, 30_000):
        (folder / f"nested{depth}.dcm").write_bytes(nested(template.read_bytes(), depth))
    for name, change in changes.items():
        dicom(template, folder / f"{name}.dcm", change)


def write_special_files(folder: Path) -> None:
    """Make pipes, sockets, links to devices, broken and circular links, empty files and folders."""
    folder.mkdir()
    for ending in ("png", "dcm", "zip", "nii", "tif"):
        os.mkfifo(folder / f"pipe.{ending}")
        for device in ("zero", "full", "random", "tty"):
            (folder / f"{device}.{ending}").symlink_to(f"/dev/{device}")
        (folder / f"loop.{ending}").symlink_to(folder / f"loop.{ending}")
        (folder / f"gone.{ending}").symlink_to(folder / "nothing")
        (folder / f"empty.{ending}").touch()
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(folder / f"socket.{ending}"))
    (folder / "round").symlink_to(folder)
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "folder.zip").mkdir()


def write_escapes(folder: Path, template: Path) -> None:
    """Write good scans with hostile names and with hostile text in their tags."""
    folder.mkdir()
    for number, text in enumerate(ESCAPES):
        content = np.roll(np.asarray(Image.open(template)), number + 1, axis=1)
        Image.fromarray(content).save(folder / f"{text.replace('/', '')}.png")


def peaks_of(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Peak resident memory in MiB of a process, and of its largest descendant."""
    own = largest = 0.0
    while process.poll() is None:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                peak = int(lines["VmHWM"].split()[0]) / 1024
            except (OSError, KeyError, ValueError):
                continue
            if int(lines["Pid"]) == process.pid:
                own = max(own, peak)
            elif is_under(int(lines["Pid"]), process.pid):
                largest = max(largest, peak)
        time.sleep(0.1)
    return own, largest


def is_under(process: int, parent: int) -> bool:
    """Whether a process is a descendant of another."""
    while process > 1:
        try:
            text = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return False
        process = int(text.rpartition(")")[2].split()[1])
        if process == parent:
            return True
    return False


def score(folder: Path, out: Path, bundle: str) -> tuple[Rows, str, float, float]:
    """Score a folder; return the outcome of each path, the output and both memory peaks."""
    command = [sys.executable, "-m", "anomaly", "score", str(folder), "--bundle", bundle]
    command += ["--out", str(out), "--set", "data.seconds=20", "--set", "data.workers=2"]
    with (out.parent / f"{out.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[1])
        own, largest = peaks_of(process)
    printed = (out.parent / f"{out.name}.log").read_text()
    if process.returncode:
        raise SystemExit(f"scoring ended with {process.returncode}: {printed[-2000:]}")
    table = out.parent / f"{out.name}.csv"
    export = [sys.executable, "-m", "anomaly", "export", str(out), str(table)]
    subprocess.run([*export, "--with-identifiers"], check=True, capture_output=True)
    with table.open(newline="") as lines:
        rows = {row["source_path"]: (row["reason"], row["score"]) for row in csv.DictReader(lines)}
    return rows, printed, own, largest


def main() -> None:
    """Write the files, score them and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="zhanglab")
    parser.add_argument("--work", type=Path, required=True, help="Empty folder to work in.")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    scans = options.work / "scans"
    write_phantom_studies(scans / "good", normals=GOOD, abnormals=0, seed=0)
    alone, *_ = score(scans / "good", options.work / "alone", options.bundle)
    film = options.work / "film.png"
    phantom = draw_phantom(np.random.default_rng(0))
    Image.fromarray((phantom.image * 255).astype(np.uint8)).save(film)
    others = write_phantom_studies(options.work / "others", normals=1, abnormals=0, seed=1)
    write_bombs(scans / "bombs", options.work / "others" / others.normal[0])
    write_special_files(scans / "special")
    write_escapes(scans / "names", film)
    begun = time.monotonic()
    rows, printed, own, largest = score(scans, options.work / "run", options.bundle)
    print(f"scored in {time.monotonic() - begun:.0f} s")
    print(f"peak of the command {own:.0f} MiB, of the largest of its decoders {largest:.0f} MiB")
    for kind in ("good", "bombs", "special", "names"):
        reasons = Counter(
            reason or "scored" for path, (reason, _) in rows.items() if path.startswith(kind)
        )
        files = sum(1 for path in (scans / kind).rglob("*") if not path.is_dir())
        print(f"{kind}: {files} files, {reasons.total()} rows: {dict(reasons)}")
    # The last bits of a float32 score depend on the other scans of its batch.
    same = all(
        np.isclose(float(rows[f"good/{path}"][1]), float(score), rtol=1e-5)
        for path, (_, score) in alone.items()
    )
    print(f"good scans as they score alone, to 1e-5: {same}")
    hidden = [character for character in printed if ord(character) < 32 and character not in "\n\r"]
    print(f"control characters on the terminal: {len(hidden)}")
    if not same or hidden:
        raise SystemExit("the good scans, or the terminal, were not left alone")


if __name__ == "__main__":
    main()
