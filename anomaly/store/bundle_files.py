"""The files of a bundle, and the comparison of each with its recorded hash.

::

    bundle.json                settings, versions, hashes of the other files
    weights.safetensors        averaged network, with its closed-form base and intercepts
    detector.safetensors       density over features, heatmap statistics, mean normal image
    look_alikes.safetensors    normal training images that may be shown (if the settings allow it)
    calibration.safetensors    scores, peaks and features of held-out normals (once calibrated)
    seen.json                  hashes of the scans used for training and calibration
    bundle.sig                 signature of the maker (`anomaly.store.signatures`); optional

The files contain tensors and JSON only: nothing is unpickled or executed. Every file is compared
with its recorded hash, ``bundle.json`` with the hash that it contains of itself, and errors name
the files that differ.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly.errors import BundleError
from anomaly.files import TEMPORARY, write_together, writing

__all__ = [
    "CALIBRATION",
    "DETECTOR",
    "FORMAT",
    "LOOK_ALIKES",
    "SEEN",
    "SHIPPED",
    "SIGNATURE",
    "WEIGHTS",
    "bundle_hash",
    "bundle_problems",
    "copy_bundle",
    "find_bundle",
    "is_calibrated",
    "read_bundle_file",
    "read_files",
    "same_detector",
    "write_files",
]

SHIPPED = Path(__file__).parents[1] / "bundles"
"""Bundles that are installed with the package, each with its model card."""

FORMAT = 8

READABLE = (5, 6, 7, FORMAT)
"""Formats of which the network can be read. Format 5 has no `EncoderSettings.normalize`; its
encoders do not normalise. The detectors of formats before 8 were fitted on features that are not
computed any more: `anomaly refit` fits new ones."""

SIGNATURE = "bundle.sig"
WEIGHTS = "weights.safetensors"
DETECTOR = "detector.safetensors"
SEEN = "seen.json"
LOOK_ALIKES = "look_alikes.safetensors"
CALIBRATION = "calibration.safetensors"

_MAIN = "bundle.json"
_OPTIONAL = {LOOK_ALIKES, CALIBRATION}
_KNOWN = {WEIGHTS, DETECTOR, SEEN, *_OPTIONAL}
"""Files of a bundle besides the main one; no other name is read, copied or written."""

_MOST_BYTES = {_MAIN: 16 * 2**20, SIGNATURE: 64, SEEN: 512 * 2**20}
_MOST_OF_ARRAYS = 4 * 2**30


def find_bundle(name: Path) -> Path:
    """Return the folder of that name if it exists, otherwise the shipped bundle of that name."""
    shipped = SHIPPED / name
    return shipped if not name.exists() and len(name.parts) == 1 and shipped.is_dir() else name


def bundle_hash(folder: Path) -> str:
    """SHA-256 of a bundle's ``bundle.json``, which lists the hashes of all its other files.

    Raises
    ------
    BundleError
        If ``bundle.json`` is missing or cannot be read.
    """
    return hashlib.sha256(_read_main(folder)[0]).hexdigest()


def same_detector(folder: Path, other: Path) -> bool:
    """Whether two bundles are equal except for their calibration.

    Raises
    ------
    BundleError
        If one of them is damaged.
    """
    first, second = (_read_main(path)[1] for path in (folder, other))
    return bool(
        all(first["files"][name] == second["files"][name] for name in (WEIGHTS, DETECTOR))
        and first["config"] == second["config"]
    )


def bundle_problems(folder: Path) -> list[str]:
    """List the problems of a bundle's files; empty if it is intact.

    Raises
    ------
    BundleError
        If ``bundle.json`` is missing, cannot be read or has another format.
    """
    return _compare(folder, _read_main(folder)[1])[1]


def read_files(folder: Path) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """Return the hash of a bundle, the content of ``bundle.json``, and its other files by name.

    Every file is read once, so the bytes that are used are the bytes that were checked.

    Raises
    ------
    BundleError
        If a file is missing or differs from its recorded hash, or the format is not supported.
    """
    main, record = _read_main(folder)
    files, problems = _compare(folder, record)
    if problems:
        raise BundleError(f"bundle {folder}: " + "; ".join(problems) + ". Copy or train it again")
    return hashlib.sha256(main).hexdigest(), record, files


def _compare(folder: Path, record: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Files of a bundle, and a list of their problems."""
    files, problems = {}, []
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
            continue
        files[name] = read_bundle_file(path)
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != expected:
            problems.append(f"{name} has changed: SHA-256 {digest[:12]}, expected {expected[:12]}")
    return files, problems


def is_calibrated(folder: Path) -> bool:
    """Whether a bundle contains a calibration; its other files may be damaged."""
    return (folder / CALIBRATION).is_file()


def copy_bundle(source: Path, folder: Path) -> None:
    """Copy a bundle, replacing an existing one. If copying fails, nothing changes.

    Raises
    ------
    AnomalyError
        If it cannot be written.
    """
    _, record = _read_main(source)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{TEMPORARY}")
    with writing(folder):
        try:
            unfinished.mkdir(parents=True)
            for name in (_MAIN, *record["files"]):
                (unfinished / name).write_bytes(read_bundle_file(source / name))
            if (source / SIGNATURE).is_file():
                (unfinished / SIGNATURE).write_bytes(read_bundle_file(source / SIGNATURE))
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def read_bundle_file(path: Path) -> bytes:
    """Read a file of a bundle from an untrusted source: a regular file of bounded size.

    Links are refused because they can point outside the bundle, pipes because reading one can
    block.

    Raises
    ------
    BundleError
    OSError
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(
                f"{path} is a link: expected the file itself; copy the bundle with its files"
            ) from error
        raise
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(file.fileno())
        most = _MOST_BYTES.get(path.name, _MOST_OF_ARRAYS)
        if not stat.S_ISREG(state.st_mode) or state.st_size > most:
            raise BundleError(
                f"{path} is no plain file of at most {most:,} bytes: it is no file of a bundle"
            )
        return file.read()


def _read_main(folder: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        main = read_bundle_file(folder / _MAIN)
        record: dict[str, Any] = json.loads(main)
        version = record["format"]
        if not record["files"].keys() <= _KNOWN:
            raise ValueError(f"it names files that no bundle has: {sorted(record['files'])!r:.200}")
        sealed = _seal({k: v for k, v in record.items() if k != "sha256"})
    except (FileNotFoundError, NotADirectoryError) as error:
        shipped = ", ".join(sorted(path.name for path in SHIPPED.glob("*/"))) or "none"
        raise BundleError(
            f"{folder} is no bundle: it holds no {_MAIN}. Train one first, or name a shipped one "
            f"({shipped})"
        ) from error
    except OSError as error:
        raise BundleError(f"{folder / _MAIN} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{folder / _MAIN} is damaged ({error}): copy the bundle again"
        ) from error
    if version not in READABLE:
        raise BundleError(
            f"bundle {folder} has format {version}: this version reads formats {READABLE}"
        )
    if main != sealed:
        raise BundleError(f"{folder / _MAIN} has changed since it was written: copy it again")
    if version == 5 and record["config"]["network"]["kind"] == "encoder":
        record["config"]["network"]["normalize"] = False
    return main, record


def write_files(folder: Path, files: Mapping[str, bytes], record: Mapping[str, Any]) -> str:
    """Write the files of a bundle, replacing existing ones; return its hash.

    If the disk is full, the existing bundle is unchanged.

    Parameters
    ----------
    folder : Path
    files : mapping of str to bytes
    record : mapping of str to object
        Content of ``bundle.json`` besides the hashes of the files.

    Raises
    ------
    BundleError
        If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    main = _seal({**record, "files": hashes})
    contents = {folder / name: data for name, data in {**files, _MAIN: main}.items()}
    try:
        write_together(contents)
    except OSError as error:
        raise BundleError(
            f"bundle {folder}: {Path(error.filename or folder).name} could not be written "
            f"({error.strerror}). Free some space and run again"
        ) from error
    # Remove leftovers of an earlier bundle: a signature, and images that may no longer be shown.
    for name in {SIGNATURE, *_OPTIONAL} - files.keys():
        (folder / name).unlink(missing_ok=True)
    return hashlib.sha256(main).hexdigest()


def _seal(record: Mapping[str, Any]) -> bytes:
    """Encode the record of a bundle with a hash of itself, to detect damage in it too."""
    plain = json.dumps(record, sort_keys=True, allow_nan=False).encode()
    sealed = {**record, "sha256": hashlib.sha256(plain).hexdigest()}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False).encode()
