"""Configuration: YAML in, checked values out. Nothing in a configuration is ever executed.

A configuration is complete in one file. Unknown keys are refused with the nearest valid name;
``a.b=c`` overrides are parsed as YAML values; `dump` writes what was really used. A file that a
stage has written (`write_config`) begins with the hash of what follows: one that is damaged, or was
edited, is not taken for what really ran.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field, fields, is_dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from anomaly.cdm.network import EncoderSettings, NetworkSettings
from anomaly.cdm.schedules import SCHEDULES
from anomaly.data.images.transforms import Augmentation, Preprocessing
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import SECONDS
from anomaly.data.table.gate import Gate
from anomaly.detection.features import GROUPS, FeatureSettings, feature_groups, reported_names
from anomaly.detection.heatmap import HeatmapSettings
from anomaly.detection.kinds import KINDS, KindSettings, LedoitWolfSettings
from anomaly.errors import ConfigError
from anomaly.files import whole, writing
from anomaly.strict_yaml import read_yaml, write_yaml
from anomaly.training.loop import TrainingSettings

__all__ = [
    "Config",
    "DataSettings",
    "DetectorFit",
    "LevelSettings",
    "check",
    "dump",
    "load_config",
    "override",
    "parse_config",
    "plain",
    "read_keys",
    "write_config",
]

_SEAL = "# sha256 of what follows: "

_STRICT = ConfigDict(extra="forbid")

_Settings = TypeVar("_Settings")


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
        of = {n: group for group, names in feature_groups(self.features).items() for n in names}
        names = list(of)
        for candidate in self.detector.candidates:
            for name in candidate.features:
                if name not in GROUPS and name not in names:
                    raise ConfigError(
                        f"detector.candidates use {name!r}: expected groups {tuple(GROUPS)} or names of "
                        f"features {reported_names(self.features)}"
                    )
            use, guard = (
                {name for name in names if {name, of[name]} & set(named)}
                for named in (candidate.use, candidate.guard)
            )
            if both := sorted(use & guard):
                raise ConfigError(
                    f"detector.candidates {candidate}: {both[0]!r} is in use and on guard: "
                    "expected one of the two"
                )

    @property
    def hash(self) -> str:
        """SHA-256 of the resolved configuration."""
        return hashlib.sha256(dump(self).encode()).hexdigest()


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``a.b=c`` overrides.

    Raises
    ------
    ConfigError
        If the file is missing or is not YAML, a key is unknown, or a value is not what is expected.
    """
    raw = read_keys(path)
    _apply(raw, overrides)
    return parse_config(raw)


def write_config(path: Path, config: Config) -> None:
    """Write the resolved configuration with its hash, whole or not at all, mode 0600.

    Raises
    ------
    AnomalyError
        If it cannot be written.
    """
    text = dump(config)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with writing(path), whole(path, mode=0o600) as file:
        file.write(f"{_SEAL}{digest}\n{text}".encode())


def _check_seal(path: Path, text: str) -> None:
    first, _, content = text.partition("\n")
    expected = first.removeprefix(_SEAL)
    if expected != first and hashlib.sha256(content.encode()).hexdigest() != expected:
        raise ConfigError(
            f"{path} is not what was written there: it is damaged, or was edited. Settings are "
            "changed by --set; to use an edited copy elsewhere, remove its first line"
        )


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Check plain values against `Config`; see `load_config` for errors."""
    return check(raw, Config)


def read_keys(path: Path) -> dict[str, Any]:
    """Read the keys of a YAML file, unchecked; see `load_config` for errors."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"configuration {path} cannot be read ({error.strerror}): name a YAML file, such as "
            "one of the folder configs"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration {path} is not UTF-8 (byte {error.start} is "
            f"{error.object[error.start]:#x}): save it as UTF-8"
        ) from error
    _check_seal(path, text)
    raw = read_yaml(text, f"configuration {path}")
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration {path} holds no keys: expected `key: value` lines")
    return raw


def check(raw: Mapping[str, Any], settings: type[_Settings]) -> _Settings:
    """Check plain values against a class of settings; see `load_config` for errors."""
    if settings is Config:
        raw = _without_idle_fields(raw)
    _refuse_unknown(raw, settings, "")
    _refuse_mistaken(raw, "")
    _refuse_beyond(raw, "")
    read = _with_kinds(raw) if settings is Config else raw
    try:
        checked: _Settings = TypeAdapter(settings).validate_python(read)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where} is {first['input']!r}: {first['msg']}") from error
    _refuse_converted(raw, checked, "")
    _refuse_mistaken(checked, "")
    return checked


_MOST: Mapping[str, float] = {
    "augmentation.gamma": 100,
    "augmentation.rotate": 180,
    "augmentation.shift": 1,
    "data.workers": 1024,
    "detector.nuisance_copies": 1000,
    "features.bands": 1024,
    "features.draws": 1000,
    "features.grid": 1024,
    "levels.steps": 10_000,
    "look_alikes": 1_000_000,
    "network.blocks": 100,
    "network.features": 8192,
    "network.patch": 256,
    "network.widths": 8192,
    "preprocessing.size": 4096,
    "training.batch_size": 1_000_000,
}
"""What lies beyond means nothing, or fills memory or time without a word."""


def _refuse_beyond(raw: Any, where: str) -> None:
    """Refuse numbers above `_MOST`, each one of a list."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            _refuse_beyond(value, f"{where}.{key}" if where else str(key))
    elif isinstance(raw, list | tuple):
        for value in raw:
            _refuse_beyond(value, where)
    elif isinstance(raw, int | float) and raw > _MOST.get(where, math.inf):
        raise ConfigError(f"{where} is {raw}: expected at most {_MOST[where]:,}")


def _refuse_mistaken(raw: Any, where: str) -> None:
    """Refuse NaN, which passes every comparison, and seeds that no generator takes."""
    if is_dataclass(raw) and not isinstance(raw, type):
        raw = {item.name: getattr(raw, item.name) for item in fields(raw)}
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            _refuse_mistaken(value, f"{where}.{key}" if where else str(key))
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            _refuse_mistaken(value, f"{where}[{index}]")
    elif isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"{where} is {raw}: expected a finite number")
    elif where.rpartition(".")[2] == "seed" and isinstance(raw, int) and not 0 <= raw < 2**63:
        raise ConfigError(f"{where} is {raw}: expected 0 to 2^63 - 1")


def _refuse_converted(raw: Any, checked: Any, where: str) -> None:
    """Refuse true and false where a number or a text was made of them: 1 epoch is not "true"."""
    if isinstance(raw, bool) and not isinstance(checked, bool):
        raise ConfigError(f"{where} is {str(raw).lower()}: expected a {type(checked).__name__}")
    if isinstance(checked, bool) and not isinstance(raw, bool):
        raise ConfigError(f"{where} is {raw!r}: expected true or false")
    if isinstance(raw, str) and isinstance(checked, int | float):
        raise ConfigError(f"{where} is {raw!r}, a text: expected a number, without quotes")
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            inner = checked.get(key) if isinstance(checked, Mapping) else getattr(checked, key)
            _refuse_converted(value, inner, f"{where}.{key}" if where else str(key))
    elif isinstance(raw, list | tuple) and isinstance(checked, list | tuple):
        for index, (value, inner) in enumerate(zip(raw, checked, strict=True)):
            _refuse_converted(value, inner, f"{where}[{index}]")


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Apply ``a.b=c`` overrides to a configuration; see `load_config` for errors."""
    raw = plain(config)
    _apply(raw, overrides)
    return parse_config(raw)


def dump(config: Config) -> str:
    """Write the resolved configuration as YAML; `load_config` reads it back equal."""
    return write_yaml(plain(config))


def plain(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain values; `parse_config` reads it back equal."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def _apply(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides in place; none may take back what another has set."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key} is set twice (--set, --alpha): keep one")
    for text in overrides:
        _override(raw, text)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override!r}: expected section.key=value, such as training.steps=500"
        )
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
    raw[last] = read_yaml(text, f"--set {override}")


def _refuse_unknown(raw: Mapping[str, Any], owner: type, where: str) -> None:
    """Name the nearest valid key before pydantic says only that one is not permitted."""
    known = {f.name for f in fields(owner)}
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"expected one of {sorted(known)}"
            raise ConfigError(f"unknown configuration key {where}{key}: {hint}")
        section = _section(owner, key, value)
        if section is not None:
            _refuse_unknown(value, section, f"{where}{key}.")
        if owner is DetectorFit and key == "candidates" and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping) and (kind := KINDS.get(_kind_name(item))):
                    _refuse_unknown(item, kind.settings, f"{where}candidates[{index}].")


def _kind_name(candidate: Mapping[str, Any]) -> str:
    return str(candidate.get("kind", LedoitWolfSettings.kind))


_IDLE_FIELDS = {"guard": [], "components": 100, "clusters": 3, "neighbours": 5}
"""What every candidate had before each kind had settings of its own, and its default."""


def _without_idle_fields(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out what earlier versions wrote beside every candidate, whatever its kind."""

    def plain_candidate(item: Any) -> Any:
        if not isinstance(item, Mapping) or _kind_name(item) not in KINDS:
            return item
        own = {f.name for f in fields(KINDS[_kind_name(item)].settings)}
        return {
            name: value
            for name, value in item.items()
            if name in own or name not in _IDLE_FIELDS or value != _IDLE_FIELDS[name]
        }

    return _with_candidates(raw, plain_candidate)


def _with_kinds(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read each candidate as its kind's settings.

    Raises
    ------
    ConfigError
    """
    number = count()

    def settings_of(item: Any) -> Any:
        place = f"detector.candidates.{next(number)}"
        if not isinstance(item, Mapping):
            return item  # refused where it is expected
        name = _kind_name(item)
        if name not in KINDS:
            raise ConfigError(f"{place}.kind is {name!r}: expected one of {', '.join(KINDS)}")
        try:
            return TypeAdapter(KINDS[name].settings).validate_python(dict(item))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([place, *map(str, first["loc"])])
            raise ConfigError(f"{where} is {first['input']!r}: {first['msg']}") from error

    return _with_candidates(raw, settings_of)


def _with_candidates(raw: Mapping[str, Any], change: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Return a configuration with every detector candidate changed."""
    detector = raw.get("detector")
    if not isinstance(detector, Mapping) or not isinstance(detector.get("candidates"), list):
        return raw
    candidates = [change(item) for item in detector["candidates"]]
    return {**raw, "detector": {**detector, "candidates": candidates}}


def _section(owner: type, key: str, value: Any) -> type | None:
    """Class of a nested section, or None where the key holds a plain value."""
    if owner is not Config or not isinstance(value, Mapping):
        return None
    if key == "network":
        kinds = {cls.kind: cls for cls in NetworkSettings.__args__}
        return kinds.get(str(value.get("kind", "encoder")))
    default = next(f for f in fields(Config) if f.name == key).default_factory
    return default if isinstance(default, type) and is_dataclass(default) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
