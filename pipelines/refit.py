"""refit: the network of a bundle and normal scans -> a bundle with a new detector.

The network is not trained. A bundle of an earlier format, whose detector can no longer be read,
gets one of this version in minutes; so does one whose configuration of the detector has changed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from anomaly.config import Config
from anomaly.data.images.network_images import ImageReader, read_images
from anomaly.data.table.manifest import Manifest
from anomaly.errors import ConfigError
from anomaly.logs import Public
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.train import fit_bundle, normals_of
from anomaly.scoring.job import check_same_grey
from anomaly.store.bundle import Bundle
from anomaly.store.trained_network import NETWORK_SETTINGS, read_network
from anomaly.training.detector_fit import ScanObserver

__all__ = ["refit"]

log = logging.getLogger(__name__)


def refit(run: RunFolder, folder: Path, config: Config, device: torch.device) -> Bundle:
    """Fit the detector of a bundle's network on the normals of a run, and write the run's bundle.

    Parameters
    ----------
    run : RunFolder
        Prepared, with normal scans in the splits train and validation.
    folder : Path
        Bundle with the network; its format may be an earlier one.
    config : Config
        Its settings of features, heatmap and detector are used.
    device : torch.device

    Raises
    ------
    BundleError
        If the bundle cannot be read.
    ConfigError
        If the configuration is of another image size or grey scale than the network, or the run has
        trained a bundle of its own.
    ManifestError
        If a split holds no normal scans.
    """
    if run.checkpoint.exists() and folder.resolve() != run.bundle.resolve():
        raise ConfigError(
            f"{run.path} has trained a bundle of its own, which would be lost: prepare a new run "
            "to fit a detector on another network"
        )
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    source = read_network(folder)
    check_same_grey(config, source.config)
    if config.preprocessing != source.config.preprocessing:
        raise ConfigError(
            f"preprocessing is {config.preprocessing}, and the network in {folder} was trained on "
            f"{source.config.preprocessing}: expected the same, set it in the configuration"
        )
    config = replace(config, **{name: getattr(source.config, name) for name in NETWORK_SETTINGS})
    normals = {split: normals_of(manifest, config, split) for split in ("train", "validation")}
    reader = ImageReader(config.data.root, config.intensity, config.preprocessing)
    images = read_images(reader, normals["train"], config.data.workers).images
    observer = ScanObserver(source.network, source.levels, config, source.reference, device)
    bundle = fit_bundle(run, manifest.hash, observer, normals, images, seen=source.seen)
    run.record("refit", {"bundle_hash": bundle.hash, "network": source.hash}, [run.bundle])
    log.info("fitted on the network of %s", Public(folder.name))
    return bundle
