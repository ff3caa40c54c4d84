"""What a configuration holds: a class a section, each checked by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ConfigDict, InstanceOf
from pydantic.dataclasses import dataclass

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.network import NetworkSettings
from anomaly.cdm.schedules import SCHEDULES
from anomaly.config.strict_yaml import write_yaml
from anomaly.data.images.transforms import Augmentation, Preprocessing
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import SECONDS
from anomaly.data.table.gate import Gate
from anomaly.detection.features import GROUPS, FeatureSettings, feature_groups, reported_names
from anomaly.detection.heatmap import HeatmapSettings
from anomaly.detection.kinds import KindSettings, LedoitWolfSettings
from anomaly.errors import ConfigError
from anomaly.training.settings import TrainingSettings

__all__ = [
    "Config",
    "DataSettings",
    "DetectorFit",
    "LevelSettings",
    "ResultsSettings",
    "dump",
    "plain",
]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class DataSettings:
    """Which scans, and who is who.

    Attributes
    ----------
    root : Path
        Folder of scans.
    labels : dict of str to list of str
        Label -> glob patterns on the path relative to `root`; the first match wins.
    sites : dict of str to list of str
        Name of a site -> glob patterns of its files, likewise; the names go into the results.
    normal : str
        The label that the model learns from.
    patient_pattern : str or None
        Regular expression that finds the patient in a file name, for files without DICOM tags.
    masks : str or None
        Folder within `root` with a PNG mask a scan, at the scan's path + ``.png``, for evaluation;
        on the pixels as the scan's file stores them.
    splits : dict of str to float
        Share of normal patients in each split.
    allow_synthetic : bool
        Learn from images that a computer made; for phantoms only.
    workers : int
        Processes that decode. With 0, the reading process does: quicker for a few files, and a
        damaged one that crashes or hangs a decoder ends the run.
    seconds : float
        Time limit of a file; what takes longer is not used, and gets a row that says so.
    seed : int
        Of the split.
    """

    root: Path = Path("data")
    labels: dict[str, list[str]] = field(default_factory=lambda: {"normal": ["*"]})
    sites: dict[str, list[str]] = field(default_factory=dict)
    normal: str = "normal"
    patient_pattern: str | None = None
    masks: str | None = None
    splits: dict[str, float] = field(
        default_factory=lambda: {
            "train": 0.55,
            "validation": 0.15,
            "calibration": 0.2,
            "test": 0.1,
        }
    )
    allow_synthetic: bool = False
    workers: int = 1
    seconds: float = SECONDS
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a normal class that no folder can have."""
        if self.normal not in self.labels:
            raise ConfigError(
                f"data.normal is {self.normal!r}: expected one of the labels {sorted(self.labels)}"
            )
        if self.masks is not None:
            place = PurePosixPath(self.masks)
            if place.is_absolute() or ".." in place.parts or not place.parts:
                raise ConfigError(
                    f"data.masks is {self.masks!r}: expected a folder within data.root, relative "
                    "to it"
                )
            object.__setattr__(self, "masks", str(place))
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers}: expected 0 processes or more")
        if not self.seconds > 0:
            raise ConfigError(f"data.seconds is {self.seconds}: expected a time above 0")


@dataclass(frozen=True, config=_STRICT)
class LevelSettings:
    """The noise ladder: a schedule's name, and how many levels between clean and noise."""

    schedule: str = "log_snr"
    steps: int = 400

    def __post_init__(self) -> None:
        """Refuse an unknown schedule."""
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"levels.schedule is {self.schedule!r}: expected one of {sorted(SCHEDULES)}"
            )
        if self.steps < 1:
            raise ConfigError(f"levels.steps is {self.steps}: expected 1 or more")


@dataclass(frozen=True, config=_STRICT)
class DetectorFit:
    """Which detectors may be used, and on what they are fitted.

    Attributes
    ----------
    candidates : tuple of KindSettings
        The detector; where there are several, `anomaly.detection.selection` chooses one without
        any abnormal scan.
    fit_on : tuple of {"train", "validation"}
        Splits whose normals the detector and the heatmap are fitted on.
    nuisance_copies : int
        Copies of each of them under random mild acquisition changes
        (`anomaly.data.synthetic.alterations.random_nuisance`) that are fitted on too.
    calibrate_under_nuisance : bool
        Calibrate on the calibration scans under such changes, not as they are: the false-alarm
        rate then holds for normals so changed, and is smaller for unchanged ones.
    seed : int
        Of these changes.
    """

    candidates: tuple[InstanceOf[KindSettings], ...] = (LedoitWolfSettings(),)
    fit_on: tuple[Literal["train", "validation"], ...] = ("validation",)
    nuisance_copies: int = 0
    calibrate_under_nuisance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to fit, or nothing to choose by."""
        if not self.candidates:
            raise ConfigError("detector.candidates is empty: name at least one detector")
        if "validation" not in self.fit_on:
            raise ConfigError(
                f"detector.fit_on is {list(self.fit_on)}: expected validation among them, scans "
                "that the network has not seen"
            )
        if len(self.candidates) > 1 and ("train" not in self.fit_on or not self.nuisance_copies):
            raise ConfigError(
                f"detector.candidates holds {len(self.candidates)}: choosing one needs fit_on: "
                "[train, validation], to fit on the one and compare on the other, and "
                "nuisance_copies of 1 or more"
            )
        names = [str(candidate) for candidate in self.candidates]
        if len(set(names)) < len(names):
            raise ConfigError(f"detector.candidates {names}: the same one is named twice")
        if self.nuisance_copies < 0:
            raise ConfigError(
                f"detector.nuisance_copies is {self.nuisance_copies}: expected 0 or more"
            )


@dataclass(frozen=True, config=_STRICT)
class ResultsSettings:
    """How results are kept.

    Attributes
    ----------
    shard : int
        Scans a part; what is lost when a process is killed is less than one part.
    maps : {"all", "flagged"}
        Scans whose evidence map is kept: all, or those that are flagged and a sample of the rest.
    sampled : float
        That sample's share, drawn by pseudonym: the same scans whoever scores them.
    """

    shard: int = 256
    maps: Literal["all", "flagged"] = "all"
    sampled: float = 0.01

    def __post_init__(self) -> None:
        """Refuse empty parts and shares that are none."""
        if self.shard < 1:
            raise ConfigError(f"results.shard is {self.shard}: expected 1 scan or more")
        if not 0 <= self.sampled <= 1:
            raise ConfigError(f"results.sampled is {self.sampled}: expected a share, 0 to 1")

    def keeps_map(self, key: str, *, flagged: bool) -> bool:
        """Whether the evidence map of a scan is kept; `key` is its pseudonym, hex digits."""
        return self.maps == "all" or flagged or int(key[:8], 16) < self.sampled * 16**8


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One experiment, whole.

    Attributes
    ----------
    name : str
    data, intensity, gate, preprocessing, augmentation, levels, network, training
        See their classes.
    features, heatmap, detector
        See their classes.
    alpha : float
        Stated false-alarm rate.
    results : ResultsSettings
    look_alikes : int
        Normal training images that go into the bundle, to be shown beside scans that are judged.
        Who has the bundle has these images, so there are none by default.
    """

    name: str
    data: DataSettings = field(default_factory=DataSettings)
    intensity: IntensityPolicy = field(default_factory=IntensityPolicy)
    gate: Gate = field(default_factory=Gate)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)
    levels: LevelSettings = field(default_factory=LevelSettings)
    network: NetworkSettings = field(default_factory=EncoderSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    heatmap: HeatmapSettings = field(default_factory=HeatmapSettings)
    detector: DetectorFit = field(default_factory=DetectorFit)
    alpha: float = 0.05
    results: ResultsSettings = field(default_factory=ResultsSettings)
    look_alikes: int = 0

    def __post_init__(self) -> None:
        """Refuse what no calibration can support."""
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha is {self.alpha}: expected a rate between 0 and 1, e.g. 0.05")
        if self.look_alikes < 0:
            raise ConfigError(f"look_alikes is {self.look_alikes}: expected 0 images or more")
        if self.network.channels != 1:
            raise ConfigError(
                f"network.channels is {self.network.channels}: expected 1, as every scan is grey"
            )
        stride = self.network.stride
        if self.preprocessing.size % stride:
            raise ConfigError(
                f"preprocessing.size is {self.preprocessing.size}: this network needs a multiple "
                f"of {stride}"
            )
        self.heatmap.check_levels(self.features.noise_to_signal)
        of = {n: group for group, names in feature_groups(self.features).items() for n in names}
        names = list(of)
        for candidate in self.detector.candidates:
            for name in candidate.features:
                if name not in GROUPS and name not in names:
                    raise ConfigError(
                        f"detector.candidates use {name!r}: expected groups {tuple(GROUPS)} or "
                        f"names of features {reported_names(self.features)}"
                    )
            _refuse_two_roles(candidate, of)

    @property
    def hash(self) -> str:
        """SHA-256 of the resolved configuration."""
        return hashlib.sha256(dump(self).encode()).hexdigest()


def _refuse_two_roles(candidate: KindSettings, group_of: Mapping[str, str]) -> None:
    """Refuse a candidate that names a feature in two roles, of which one would be ignored."""
    roles: dict[str, str] = {}
    for role, named in candidate.roles.items():
        for name in (name for name, group in group_of.items() if {name, group} & set(named)):
            if name in roles:
                raise ConfigError(
                    f"detector.candidates {candidate}: {name!r} is in {roles[name]} and in "
                    f"{role}: expected one of the two"
                )
            roles[name] = role


def dump(config: Config) -> str:
    """Write the resolved configuration as YAML; `load_config` reads it back equal."""
    return write_yaml(plain(config))


def plain(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain values; `parse_config` reads it back equal."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
