"""A bundle: a folder that contains one trained detector (`anomaly.store.bundle_files`).

Loading compares every file with its recorded hash and reports the ones that differ. The
preprocessing settings are stored with the weights, so scoring cannot disagree with training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor

from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier
from anomaly.config import Config, parse_config, plain
from anomaly.data.table.manifest import ManifestRow, scan_marks
from anomaly.detection.calibration import Calibration, Spread
from anomaly.detection.detector import FeatureDetector
from anomaly.detection.extractor import FeatureExtractor
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.look_alikes import LookAlikes
from anomaly.detection.passes import Passes
from anomaly.errors import BundleError, ConfigError, NotCalibrated
from anomaly.store.bundle_files import (
    CALIBRATION,
    DETECTOR,
    FORMAT,
    LOOK_ALIKES,
    SEEN,
    WEIGHTS,
    read_files,
    write_files,
)
from anomaly.store.trained_network import network_of
from anomaly.types import NOTICE
from anomaly.version import __version__

__all__ = [
    "Adapted",
    "Bundle",
    "Calibrated",
    "read_bundle",
    "write_bundle",
]


@dataclass(frozen=True)
class Calibrated:
    """Scores, evidence and features of held-out normal scans.

    Attributes
    ----------
    scores : Calibration
        Scores of whole scans.
    peaks : Calibration
        Largest evidence of each heatmap. The region threshold, which few normals reach, comes from
        these.
    alpha : float
        Stated false-alarm rate: the default operating point for scoring.
    manifest_hash : str
        Hash of the table of scans that lists the normal scans.
    features : mapping of str to Spread
        Distribution of each reported feature.
    under_nuisance : bool
        Whether the scans were scored under random mild acquisition changes.
    seen : frozenset of str
        `anomaly.data.table.manifest.scan_marks` of all calibration scans.
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
        """Describe the calibration scans."""
        changed = " under mild acquisition changes" if self.under_nuisance else ""
        return f"{len(self.scores.scores)} normal scans{changed}"


@dataclass(frozen=True)
class Adapted:
    """Adaptation of a bundle's detector to a site (`anomaly.detection.adaptation`).

    Attributes
    ----------
    scans : int
        Normal scans of the site that it was adapted to.
    manifest_hash : str
        Hash of the table of scans that lists them; empty if there is none.
    """

    scans: int
    manifest_hash: str


@dataclass(frozen=True)
class Bundle:
    """A trained detector in memory.

    Attributes
    ----------
    config : Config
        Configuration of training; the source of the preprocessing, levels and features.
    levels : NoiseLevels
    network : LevelClassifier
        In evaluation mode.
    detector : FeatureDetector
    heatmap : HeatmapModel
    reference : Tensor (1, S, S)
        Mean training image, to which anatomy is aligned (`anomaly.detection.placement`).
    manifest_hash : str
        Hash of the table of scans used for training.
    seen : frozenset of str
        `anomaly.data.table.manifest.scan_marks` of all scans used to train the network or fit the
        detector.
    chosen : str
        Name of the candidate that was chosen as `detector`.
    margins : mapping of str to float
        Margin of every candidate detector, if there were several
        (`anomaly.detection.selection`).
    look_alikes : LookAlikes or None
        Normal training images that a report may show; None if no image may be shown.
    calibrated : Calibrated or None
    adapted : Adapted or None
        Adaptation to a site; None if the detector is as it was fitted.
    passes : callable or None
        Passes of an exported model (`anomaly.store.onnx_model`), used instead of the network; never
        saved.
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
    adapted: Adapted | None = None
    passes: Passes | None = None
    hash: str = ""

    def has_seen(self, row: ManifestRow) -> bool:
        """Whether a scan was used in training or calibration, so its score does not generalise."""
        calibrated = self.calibrated.seen if self.calibrated is not None else frozenset()
        return not scan_marks(row).isdisjoint(self.seen | calibrated)

    def extractor(self, device: torch.device) -> FeatureExtractor:
        """Return a feature extractor that runs the network, or the exported model, on a device."""
        features, grey = self.config.features, self.config.preprocessing.grey_levels
        if self.passes is not None:
            return FeatureExtractor(self.passes, features, grey, self.reference)
        network = self.network.to(device)
        return FeatureExtractor.of(network, self.levels, features, grey, self.reference)

    def has_learned(self, row: ManifestRow) -> bool:
        """Whether a scan was used in training."""
        return not scan_marks(row).isdisjoint(self.seen)

    def calibration(self) -> Calibrated:
        """Return the calibration.

        Raises
        ------
        NotCalibrated
            If the bundle is not calibrated.
        """
        if self.calibrated is None:
            raise NotCalibrated(
                "this bundle is not calibrated: it gives scores, but no p-values and no flags. Run "
                "`anomaly calibrate` on normal scans that it has not seen"
            )
        return self.calibrated


def write_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Write a bundle. If the disk is full, the existing bundle is unchanged.

    Returns
    -------
    Bundle
        The same bundle with its hash.

    Raises
    ------
    BundleError
        If it cannot be written.
    """
    state = {k: v.contiguous().cpu() for k, v in bundle.network.state_dict().items()}
    detector = {f"detector.{k}": v for k, v in bundle.detector.arrays().items()}
    heatmap = {f"heatmap.{k}": v for k, v in bundle.heatmap.arrays().items()}
    reference = bundle.reference.cpu().numpy()
    files = {
        WEIGHTS: save_tensors(state),
        DETECTOR: save_arrays(_contiguous({**detector, **heatmap, "reference": reference})),
        SEEN: json.dumps(_seen_by(bundle)).encode(),
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
    if bundle.adapted is not None:
        record["adaptation"] = asdict(bundle.adapted)
    if bundle.look_alikes is not None:
        files[LOOK_ALIKES] = save_arrays({"images": bundle.look_alikes.images})
    if bundle.calibrated is not None:
        calibrated = bundle.calibrated
        files[CALIBRATION] = save_arrays(
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
    return replace(bundle, hash=write_files(folder, files, record))


def read_bundle(folder: Path) -> Bundle:
    """Load a bundle and check the hash of every file.

    Raises
    ------
    BundleError
        If a file is missing or differs from its recorded hash, or the format is not supported.
    """
    digest, record, files = read_files(folder)
    if record["format"] != FORMAT:
        raise BundleError(
            f"bundle {folder} has format {record['format']}: its detector was fitted on features "
            f"that this version ({__version__}) does not compute. `anomaly refit` fits one of this "
            "version on the same network and normal scans, in minutes"
        )
    try:
        config = parse_config(record["config"])
        seen = json.loads(files[SEEN])
        levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
        arrays = load_arrays(files[DETECTOR])
        return Bundle(
            config=config,
            levels=levels,
            network=network_of(files[WEIGHTS], config, levels, has_base=record["has_base"]),
            detector=FeatureDetector.from_arrays(
                record["feature_names"], record["detector_kind"], _under("detector.", arrays)
            ),
            heatmap=HeatmapModel.from_arrays(config.heatmap, _under("heatmap.", arrays)),
            reference=torch.from_numpy(arrays["reference"]),
            manifest_hash=record["manifest_hash"],
            chosen=record["chosen"],
            margins=record["margins"],
            seen=frozenset(seen["training"]),
            look_alikes=_read_look_alikes(folder, files, config.preprocessing.size),
            calibrated=_read_calibration(files, record.get("calibration"), seen["calibration"]),
            adapted=Adapted(**record["adaptation"]) if "adaptation" in record else None,
            hash=digest,
        )
    except (KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
        raise BundleError(
            f"bundle {folder} was written by version {record.get('versions')} and does not fit "
            f"this one ({__version__}): {error}"
        ) from error


def _read_look_alikes(folder: Path, files: Mapping[str, bytes], size: int) -> LookAlikes | None:
    if LOOK_ALIKES not in files:
        return None
    read = LookAlikes(load_arrays(files[LOOK_ALIKES])["images"])
    if read.images.shape[1:] != (size, size):
        raise BundleError(
            f"{folder / LOOK_ALIKES} holds images of {read.images.shape[1:]}: this bundle's are "
            f"{(size, size)}"
        )
    return read


def _seen_by(bundle: Bundle) -> dict[str, list[str]]:
    calibrated = bundle.calibrated.seen if bundle.calibrated is not None else ()
    return {"training": sorted(bundle.seen), "calibration": sorted(calibrated)}


def _read_calibration(
    files: Mapping[str, bytes],
    record: Mapping[str, Any] | None,
    seen: list[str],
) -> Calibrated | None:
    if record is None:
        return None
    arrays = load_arrays(files[CALIBRATION])
    return Calibrated(
        Calibration(arrays["scores"]),
        Calibration(arrays["peaks"]),
        float(record["alpha"]),
        record["manifest_hash"],
        {name: Spread(array) for name, array in _under("feature.", arrays).items()},
        bool(record["under_nuisance"]),
        frozenset(seen),
    )


def _json_config(config: Config) -> Any:
    """Return the configuration without the folder of training scans, which is local."""
    values = plain(config)
    values["data"]["root"] = "."
    return values


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    # Not np.ascontiguousarray: it turns a 0-dimensional array into a 1-dimensional one.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
