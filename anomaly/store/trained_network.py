"""The network of a bundle, without its detector: what stays usable when features change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.torch import load as load_tensors
from torch import Tensor

from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.config import Config, parse_config
from anomaly.errors import BundleError, ConfigError
from anomaly.store.bundle_files import DETECTOR, SEEN, WEIGHTS, read_files
from anomaly.version import __version__

__all__ = ["NETWORK_SETTINGS", "TrainedNetwork", "network_of", "read_network"]


@dataclass(frozen=True)
class TrainedNetwork:
    """The network of a bundle, without its detector.

    Attributes
    ----------
    config : Config
        Settings of the network; defaults for everything else.
    levels : NoiseLevels
    network : LevelClassifier
    reference : Tensor (1, S, S)
        Mean training image.
    seen : frozenset of str
        As in `Bundle`.
    hash : str
        SHA-256 of the bundle's ``bundle.json``.
    """

    config: Config
    levels: NoiseLevels
    network: LevelClassifier
    reference: Tensor
    seen: frozenset[str]
    hash: str


NETWORK_SETTINGS = ("preprocessing", "levels", "network", "augmentation", "training", "intensity")
"""Sections of the configuration that belong to the network."""


def read_network(folder: Path) -> TrainedNetwork:
    """Load the network of a bundle of any readable format.

    Raises
    ------
    BundleError
        If a file is missing or differs from its recorded hash, or the format is not supported.
    """
    digest, record, files = read_files(folder)
    try:
        own = {name: record["config"][name] for name in NETWORK_SETTINGS}
        config = parse_config({"name": record["config"]["name"], **own})
        levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
        seen = json.loads(files[SEEN])
        return TrainedNetwork(
            config,
            levels,
            network_of(files[WEIGHTS], config, levels, has_base=record["has_base"]),
            torch.from_numpy(load_arrays(files[DETECTOR])["reference"]),
            frozenset(seen if isinstance(seen, list) else seen["training"]),  # list: format < 7
            digest,
        )
    except (KeyError, RuntimeError, SafetensorError, ConfigError) as error:
        raise BundleError(
            f"bundle {folder} was written by version {record.get('versions')}; its network does "
            f"not fit this one ({__version__}): {error}"
        ) from error


def network_of(
    weights: bytes, config: Config, levels: NoiseLevels, *, has_base: bool
) -> LevelClassifier:
    """Return the network of a bundle's weights and configuration, in evaluation mode."""
    state = load_tensors(weights)
    base = None
    if has_base:
        base = CosineGaussianCDM(state["base.mean"], state["base.spectrum"], levels)
    network = LevelClassifier(build_network(config.network, levels), base)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
