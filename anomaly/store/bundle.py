"""A bundle: one folder that is one deployable detector.

::

    bundle.json                what it is: settings, versions, hashes of the other files
    weights.safetensors        the averaged network, with its closed-form base and intercepts
    detector.safetensors       density over features, heatmap statistics, mean normal image
    look_alikes.safetensors    normal training images that may be shown (where the settings say so)
    calibration.safetensors    what held-out normals scored and showed (once calibrated)
    seen.json                  hashes of the scans that it was trained and calibrated on
    bundle.sig                 who made it (`anomaly.store.signatures`); only where it was signed

Tensors and JSON only: nothing is unpickled or executed. Loading compares every file with its
recorded hash and says which one differs. Preprocessing travels with the weights, so scoring cannot
disagree with training.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.config import Config, parse_config, plain
from anomaly.data.table.manifest import ManifestRow, scan_marks
from anomaly.detection.calibration import Calibration, Spread
from anomaly.detection.detector import FeatureDetector
from anomaly.detection.extractor import FeatureExtractor
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.look_alikes import LookAlikes
from anomaly.errors import BundleError, ConfigError, NotCalibrated
from anomaly.files import TEMPORARY, writing
from anomaly.types import NOTICE
from anomaly.version import __version__

__all__ = [
    "FORMAT",
    "SIGNATURE",
    "Bundle",
    "Calibrated",
    "bundle_hash",
    "bundle_problems",
    "copy_bundle",
    "find_bundle",
    "read_bundle",
    "read_bundle_file",
    "same_detector",
    "write_bundle",
]

SHIPPED = Path(__file__).parents[1] / "bundles"
"""Bundles that are installed with the package, each with its model card."""

FORMAT = 7
READABLE = (5, 6, FORMAT)
"""Formats that are read. 5 knew no `EncoderSettings.normalize`: its encoders had none. Before 7,
the operating point was the configuration's, and calibration scans were not recorded."""

SIGNATURE = "bundle.sig"

_MAIN = "bundle.json"
_LOOK_ALIKES, _CALIBRATION = "look_alikes.safetensors", "calibration.safetensors"
_OPTIONAL = {_LOOK_ALIKES, _CALIBRATION}
_KNOWN = {"weights.safetensors", "detector.safetensors", "seen.json", *_OPTIONAL}
"""Files of a bundle beside the main one; no other name is read, copied or written."""

_MOST_BYTES = {_MAIN: 16 * 2**20, SIGNATURE: 64, "seen.json": 512 * 2**20}
_MOST_OF_ARRAYS = 4 * 2**30


@dataclass(frozen=True)
class Calibrated:
    """What held-out normals scored.

    Attributes
    ----------
    scores : Calibration
        Of whole scans.
    peaks : Calibration
        Largest evidence of each heatmap: the region threshold that few normals reach.
    alpha : float
        Stated false-alarm rate: the operating point, at which scoring flags unless it is told
        another.
    manifest_hash : str
        Of the manifest that they came from.
    features : mapping of str to Spread
        Of each reported feature.
    under_nuisance : bool
        They were scored under random mild acquisition changes, not as they are.
    seen : frozenset of str
        `anomaly.data.table.manifest.scan_marks` of every one of them; empty before format 7.
    """

    scores: Calibration
    peaks: Calibration
    alpha: float
    manifest_hash: str
    features: Mapping[str, Spread]
    under_nuisance: bool = False
    seen: frozenset[str] = frozenset()

    def evidence_ceiling(self, alpha: float) -> float:
        """Top of the colour scale: twice the evidence at which a region begins."""
        return 2 * self.peaks.threshold(alpha)

    def __str__(self) -> str:
        """Say what it was made of."""
        changed = " under mild acquisition changes" if self.under_nuisance else ""
        return f"{len(self.scores.scores)} normal scans{changed}"


@dataclass(frozen=True)
class Bundle:
    """A trained detector in memory.

    Attributes
    ----------
    config : Config
        What it was made with; preprocessing, levels and features are read from here.
    levels : NoiseLevels
    network : LevelClassifier
        In evaluation mode.
    detector : FeatureDetector
    heatmap : HeatmapModel
    reference : Tensor (1, S, S)
        Mean training image, against which anatomy is placed (`anomaly.detection.placement`).
    manifest_hash : str
        Of the manifest that it was trained on.
    seen : frozenset of str
        `anomaly.data.table.manifest.scan_marks` of every scan that network or detector has seen;
        before format 7 of its file alone.
    chosen : str
        Name of the candidate that `detector` is.
    margins : mapping of str to float
        Margin of every candidate detector, where there were several
        (`anomaly.detection.selection`).
    look_alikes : LookAlikes or None
        Normal training images that a report may show; None where none may be.
    calibrated : Calibrated or None
    hash : str
        SHA-256 of ``bundle.json``; empty before it is written.
    """

    config: Config
    levels: NoiseLevels
    network: LevelClassifier
    detector: FeatureDetector
    heatmap: HeatmapModel
    reference: Tensor
    manifest_hash: str
    seen: frozenset[str]
    chosen: str
    margins: Mapping[str, float] = field(default_factory=dict)
    look_alikes: LookAlikes | None = None
    calibrated: Calibrated | None = None
    hash: str = ""

    def has_seen(self, row: ManifestRow) -> bool:
        """Whether a scan took part in training or calibration: its score says nothing of others."""
        calibrated = self.calibrated.seen if self.calibrated is not None else frozenset()
        return not scan_marks(row).isdisjoint(self.seen | calibrated)

    def extractor(self, device: torch.device) -> FeatureExtractor:
        """Return the network on a device, and how it looks at images."""
        return FeatureExtractor(
            self.network.to(device),
            self.levels,
            self.config.features,
            self.config.preprocessing.grey_levels,
            self.reference,
        )

    def has_learned(self, row: ManifestRow) -> bool:
        """Whether a scan took part in training."""
        return not scan_marks(row).isdisjoint(self.seen)

    def calibration(self) -> Calibrated:
        """Return the calibration.

        Raises
        ------
        NotCalibrated
            If there is none.
        """
        if self.calibrated is None:
            raise NotCalibrated(
                "this bundle is not calibrated: it gives scores, but no p-values and no flags. Run "
                "`anomaly calibrate` on normal scans that it has not seen"
            )
        return self.calibrated


def same_detector(folder: Path, other: Path) -> bool:
    """Whether two bundles differ in nothing but what they were calibrated on.

    Raises
    ------
    BundleError
        If one of them is damaged.
    """
    first, second = (_read_main(path)[1] for path in (folder, other))
    arrays = ("weights.safetensors", "detector.safetensors")
    return bool(
        all(first["files"][name] == second["files"][name] for name in arrays)
        and first["config"] == second["config"]
    )


def write_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Write a bundle. A full disk leaves the bundle that was there before.

    Returns
    -------
    Bundle
        The same with its hash.

    Raises
    ------
    BundleError
        If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous().cpu() for k, v in bundle.network.state_dict().items()}
    detector = {f"detector.{k}": v for k, v in bundle.detector.arrays().items()}
    heatmap = {f"heatmap.{k}": v for k, v in bundle.heatmap.arrays().items()}
    reference = bundle.reference.cpu().numpy()
    files = {
        "weights.safetensors": save_tensors(state),
        "detector.safetensors": save_arrays(
            _contiguous({**detector, **heatmap, "reference": reference})
        ),
        "seen.json": json.dumps(_seen_by(bundle)).encode(),
    }
    record: dict[str, Any] = {
        "format": FORMAT,
        "notice": NOTICE,
        "config": _json_config(bundle.config),
        "feature_names": list(bundle.detector.names),
        "detector_kind": bundle.detector.kind,
        "chosen": bundle.chosen,
        "margins": dict(bundle.margins),
        "has_base": bundle.network.base is not None,
        "manifest_hash": bundle.manifest_hash,
        "versions": {"anomaly": __version__, "torch": torch.__version__.split("+")[0]},
    }
    if bundle.look_alikes is not None:
        files[_LOOK_ALIKES] = save_arrays({"images": bundle.look_alikes.images})
    if bundle.calibrated is not None:
        calibrated = bundle.calibrated
        files[_CALIBRATION] = save_arrays(
            {
                "scores": calibrated.scores.scores,
                "peaks": calibrated.peaks.scores,
                **{f"feature.{k}": v.percentiles for k, v in calibrated.features.items()},
            }
        )
        record["calibration"] = {
            "alpha": calibrated.alpha,
            "manifest_hash": calibrated.manifest_hash,
            "under_nuisance": calibrated.under_nuisance,
            "scans": len(calibrated.scores.scores),
        }
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    main = _seal(record)
    _write_all(folder, {**files, _MAIN: main})
    # An earlier bundle's: a signature, and images that may no longer be shown.
    for name in {SIGNATURE, *_OPTIONAL} - files.keys():
        (folder / name).unlink(missing_ok=True)
    return replace(bundle, hash=hashlib.sha256(main).hexdigest())


def bundle_hash(folder: Path) -> str:
    """SHA-256 of a bundle's ``bundle.json``, which names the hashes of all its other files.

    Raises
    ------
    BundleError
        If there is no readable one.
    """
    return hashlib.sha256(_read_main(folder)[0]).hexdigest()


def find_bundle(name: Path) -> Path:
    """Return the folder named, or the shipped bundle of that name where there is no such folder."""
    shipped = SHIPPED / name
    return shipped if not name.exists() and len(name.parts) == 1 and shipped.is_dir() else name


def read_bundle(folder: Path) -> Bundle:
    """Load a bundle and check every byte of it.

    Raises
    ------
    BundleError
        If a file is missing or differs from its recorded hash, or the format is another.
    """
    main, record = _read_main(folder)
    problems = bundle_problems(folder)
    if problems:
        raise BundleError(f"bundle {folder}: " + "; ".join(problems) + ". Copy or train it again")
    try:
        config = parse_config(record["config"])
        seen = json.loads(read_bundle_file(folder / "seen.json"))
        if isinstance(seen, list):  # before format 7
            seen = {"training": seen, "calibration": []}
        levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
        state = load_tensors(read_bundle_file(folder / "weights.safetensors"))
        arrays = load_arrays(read_bundle_file(folder / "detector.safetensors"))
        base = None
        if record["has_base"]:
            base = CosineGaussianCDM(state["base.mean"], state["base.spectrum"], levels)
        network = LevelClassifier(build_network(config.network, levels), base)
        network.load_state_dict(state)
        return Bundle(
            config=config,
            levels=levels,
            network=network.eval().requires_grad_(False),
            detector=FeatureDetector.from_arrays(
                record["feature_names"], record["detector_kind"], _under("detector.", arrays)
            ),
            heatmap=HeatmapModel.from_arrays(config.heatmap, _under("heatmap.", arrays)),
            reference=torch.from_numpy(arrays["reference"]),
            manifest_hash=record["manifest_hash"],
            chosen=record["chosen"],
            margins=record["margins"],
            seen=frozenset(seen["training"]),
            look_alikes=_read_look_alikes(folder, record["files"], config.preprocessing.size),
            calibrated=_read_calibration(
                folder, record.get("calibration"), config.alpha, seen["calibration"]
            ),
            hash=hashlib.sha256(main).hexdigest(),
        )
    except (KeyError, RuntimeError, SafetensorError, ConfigError) as error:
        raise BundleError(
            f"bundle {folder} was written by version {record.get('versions')} and does not fit "
            f"this one ({__version__}): {error}"
        ) from error


def copy_bundle(source: Path, folder: Path) -> None:
    """Copy a bundle in place of whatever bundle is there: all of it, or nothing changes.

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
    """Read a file of a bundle, which may be somebody else's: a plain one, of bounded size.

    A link would be followed to a file that is no part of it, and a pipe waited for.

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


def bundle_problems(folder: Path) -> list[str]:
    """Say what is wrong with a bundle's files; empty if it is intact.

    Raises
    ------
    BundleError
        If there is no readable ``bundle.json`` of this format.
    """
    _, record = _read_main(folder)
    problems = []
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (digest := hashlib.sha256(read_bundle_file(path)).hexdigest()) != expected:
            problems.append(f"{name} has changed: SHA-256 {digest[:12]}, expected {expected[:12]}")
    return problems


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


def _seal(record: Mapping[str, Any]) -> bytes:
    """Encode the record of a bundle with its own hash: a flipped byte in it shows too."""
    plain = json.dumps(record, sort_keys=True, allow_nan=False).encode()
    sealed = {**record, "sha256": hashlib.sha256(plain).hexdigest()}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False).encode()


def _read_look_alikes(folder: Path, files: Mapping[str, str], size: int) -> LookAlikes | None:
    if _LOOK_ALIKES not in files:
        return None
    read = LookAlikes(load_arrays((folder / _LOOK_ALIKES).read_bytes())["images"])
    if read.images.shape[1:] != (size, size):
        raise BundleError(
            f"{folder / _LOOK_ALIKES} holds images of {read.images.shape[1:]}: this bundle's are "
            f"{(size, size)}"
        )
    return read


def _seen_by(bundle: Bundle) -> dict[str, list[str]]:
    calibrated = bundle.calibrated.seen if bundle.calibrated is not None else ()
    return {"training": sorted(bundle.seen), "calibration": sorted(calibrated)}


def _read_calibration(
    folder: Path, record: Mapping[str, Any] | None, configured: float, seen: list[str]
) -> Calibrated | None:
    if record is None:
        return None
    arrays = load_arrays((folder / _CALIBRATION).read_bytes())
    return Calibrated(
        Calibration(arrays["scores"]),
        Calibration(arrays["peaks"]),
        float(record.get("alpha", configured)),  # before format 7, that of the configuration
        record["manifest_hash"],
        {name: Spread(array) for name, array in _under("feature.", arrays).items()},
        bool(record["under_nuisance"]),
        frozenset(seen),
    )


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write every file under a temporary name first: what needs space comes before any change."""
    temporary = {name: folder / f"{name}.tmp" for name in files}
    try:
        for name, data in files.items():
            with temporary[name].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            temporary[name].replace(folder / name)
    except OSError as error:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise BundleError(
            f"bundle {folder}: {name} could not be written ({error.strerror}). Free some space and "
            "run again"
        ) from error


def _json_config(config: Config) -> Any:
    """Return the configuration without the folder it was trained from: that is the trainer's."""
    values = plain(config)
    values["data"]["root"] = "."
    return values


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    # Not np.ascontiguousarray: it turns a single number into a list of one.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
