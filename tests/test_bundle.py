"""A bundle on disk: what is read back scores the same, and any change is noticed and named."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import EncoderSettings, LevelClassifier, build_network
from anomaly.config import parse_config
from anomaly.data.images.transforms import quantize
from anomaly.detection.calibration import Calibration, Spread
from anomaly.detection.extractor import FeatureExtractor
from anomaly.detection.features import reported_names
from anomaly.detection.look_alikes import LookAlikes
from anomaly.detection.scoring import Scores, fit_scoring, score_observation
from anomaly.errors import AnomalyError, BundleError, NotCalibrated
from anomaly.store.bundle import Bundle, Calibrated, read_bundle, write_bundle
from anomaly.store.bundle_files import _seal, bundle_problems
from anomaly.store.trained_network import read_network

CANARY = "/secret/hospital/archive"
NAMES = [
    "bundle.json",
    "weights.safetensors",
    "detector.safetensors",
    "calibration.safetensors",
    "look_alikes.safetensors",
    "seen.json",
]


def images(count: int, seed: int) -> torch.Tensor:
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return quantize(noise, 256)


def score(bundle: Bundle, pictures: torch.Tensor) -> Scores:
    observed = bundle.extractor(torch.device("cpu"))(pictures)
    return score_observation(observed, bundle.config.features, bundle.detector, bundle.heatmap)


def make(network: dict[str, Any], detector: dict[str, Any] | None = None) -> Bundle:
    config = parse_config(
        {
            "name": "small",
            "data": {"root": CANARY},
            "preprocessing": {"size": 8},
            "levels": {"steps": 12},
            "network": network,
            "features": {"noise_to_signal": [0.25, 1.0], "draws": 1},
            "detector": {"candidates": [detector or {}]},
            "alpha": 0.1,
        }
    )
    torch.manual_seed(0)
    levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
    base = CosineGaussianCDM.fit(images(40, 1), levels, floor=1e-4)
    classifier = LevelClassifier(
        build_network(config.network, levels), base if config.network.spectral_base else None
    )
    classifier.intercept.copy_(torch.linspace(-1, 1, len(levels)))
    classifier.eval().requires_grad_(False)
    reference = images(40, 1).mean(0)
    observed = FeatureExtractor.of(classifier, levels, config.features, 256, reference)(
        images(40, 2)
    )
    settings = config.detector.candidates[0]
    fitted, heatmap = fit_scoring(observed, config.features, config.heatmap, settings)
    seen = frozenset({"a", "b"})
    chosen = str(config.detector.candidates[0])
    plain = Bundle(config, levels, classifier, fitted, heatmap, reference, "f" * 64, seen, chosen)
    said = score(plain, images(19, 3))
    peaks = Calibration.from_scores(said.evidence.max((1, 2)).astype(np.float64))
    names = reported_names(config.features)
    calibrated = Calibrated(
        Calibration.from_scores(said.scores),
        peaks,
        0.1,
        "e" * 64,
        dict(zip(names, map(Spread.of, said.features.T), strict=True)),
        seen=frozenset({"c"}),
    )
    shown = LookAlikes.of(images(3, 4).numpy())
    return replace(plain, calibrated=calibrated, look_alikes=shown)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make(SMALL)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    write_bundle(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


SMALL = {"widths": [8, 8], "features": 4}


@pytest.mark.parametrize(
    ("network", "detector"),
    [
        (SMALL, {"kind": "ledoit_wolf"}),
        (SMALL, {"kind": "mixture", "clusters": 2}),
        (SMALL, {"kind": "neighbours", "neighbours": 3}),
        (SMALL, {"kind": "conformal", "use": ["energy", "profile"]}),
        (SMALL, {"kind": "guarded", "use": ["residual_1", "evidence"], "guard": ["nll"]}),
        ({"kind": "unet", "widths": [32], "blocks": 1}, {}),
    ],
    ids=["ledoit_wolf", "mixture", "neighbours", "conformal", "guarded", "unet"],
)
def test_a_bundle_read_back_scores_the_same(
    network: dict[str, Any], detector: dict[str, Any], tmp_path: Path
) -> None:
    bundle = make(network, detector)
    written = write_bundle(bundle, tmp_path / "b")
    again = read_bundle(tmp_path / "b")
    before, after = score(bundle, images(6, 4)), score(again, images(6, 4))
    np.testing.assert_array_equal(after.scores, before.scores)
    np.testing.assert_array_equal(after.features, before.features)
    np.testing.assert_array_equal(after.evidence, before.evidence)
    assert again.hash == written.hash
    assert again.seen == bundle.seen
    assert again.manifest_hash == bundle.manifest_hash
    assert again.detector.names == bundle.detector.names
    assert again.detector.kind == bundle.detector.kind == detector.get("kind", "ledoit_wolf")
    assert replace(again.config, data=bundle.config.data) == bundle.config
    kept, made = again.calibration(), bundle.calibration()
    np.testing.assert_array_equal(kept.scores.scores, made.scores.scores)
    np.testing.assert_array_equal(kept.peaks.scores, made.peaks.scores)
    assert (kept.alpha, kept.seen) == (made.alpha, made.seen)
    assert kept.manifest_hash == made.manifest_hash
    assert (
        kept.features.keys() == made.features.keys() == set(reported_names(bundle.config.features))
    )
    for name, values in made.features.items():
        np.testing.assert_array_equal(kept.features[name].percentiles, values.percentiles)
    assert again.look_alikes is not None
    assert bundle.look_alikes is not None
    np.testing.assert_array_equal(again.look_alikes.images, bundle.look_alikes.images)
    assert not again.network.training
    assert bundle_problems(tmp_path / "b") == []


def test_margins_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.margins == {}
    margins = {"ledoit_wolf over energy": 0.8125, "guarded over evidence, guard nll": 2 / 3}
    write_bundle(replace(bundle, margins=margins), tmp_path / "b")
    again = read_bundle(tmp_path / "b")
    assert again.margins == margins
    assert again.chosen == bundle.chosen
    # Margins do not change what is scored, but they are part of what the hash seals.
    plain = write_bundle(bundle, tmp_path / "plain")
    assert again.hash != plain.hash
    assert read_bundle(tmp_path / "plain").margins == {}


def test_the_base_is_kept_as_mean_and_spectrum_and_restored_exactly(
    bundle: Bundle, folder: Path
) -> None:
    base = bundle.network.base
    assert isinstance(base, CosineGaussianCDM)
    data = (folder / "weights.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    kept = {name for name in header if name.startswith("base.")}
    assert kept == {"base.mean", "base.spectrum"}
    # The rest follows from them, and is 14 levels times as large.
    numbers = sum(p.numel() for p in bundle.network.parameters()) + len(bundle.levels)
    assert len(data) < 4 * (numbers + 2 * 64) + 250 * len(header)
    restored = read_bundle(folder).network
    assert isinstance(restored.base, CosineGaussianCDM)
    assert torch.equal(restored.base(images(5, 6)), base(images(5, 6)))
    assert torch.equal(restored(images(5, 6)), bundle.network(images(5, 6)))


def test_the_same_bundle_has_the_same_bytes(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    write_bundle(read_bundle(folder), tmp_path / "again")
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("place", [0, 0.37, 0.81, 1])
@pytest.mark.parametrize("name", NAMES)
def test_one_changed_byte_is_noticed_and_named(name: str, place: float, folder: Path) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=name):
        read_bundle(folder)


def test_a_changed_setting_is_noticed(folder: Path) -> None:
    main = folder / "bundle.json"
    text = main.read_text()
    assert text.count('"alpha": 0.1') == 2  # of the configuration and of the calibration
    main.write_text(text.replace('"alpha": 0.1', '"alpha": 0.2'))
    with pytest.raises(BundleError, match=r"bundle\.json has changed"):
        read_bundle(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(folder)


def test_every_problem_is_listed(folder: Path) -> None:
    (folder / "seen.json").unlink()
    (folder / "weights.safetensors").write_bytes(b"no")
    problems = bundle_problems(folder)
    assert len(problems) == 2
    assert any(p == "seen.json is missing" for p in problems)
    assert any(p.startswith("weights.safetensors has changed: SHA-256") for p in problems)


def test_another_format_is_refused_by_its_number(folder: Path) -> None:
    record = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(BundleError, match=r"has format 99: .* reads formats \(5, 6, 7, 8\)"):
        read_bundle(folder)


def test_a_bundle_of_format_5_has_the_network_of_its_time(tmp_path: Path) -> None:
    """Its record does not say `normalize`, and its weights fit both networks."""
    old = make({**SMALL, "normalize": False})
    write_bundle(old, tmp_path)
    record = json.loads((tmp_path / "bundle.json").read_text())
    del record["sha256"], record["config"]["network"]["normalize"]
    (tmp_path / "bundle.json").write_bytes(_seal({**record, "format": 5}))
    # Its detector is of features that are not computed any more.
    with pytest.raises(BundleError, match=r"has format 5: its detector .* `anomaly refit`"):
        read_bundle(tmp_path)
    found = read_network(tmp_path)
    assert found.config.network == old.config.network
    assert found.seen == old.seen
    assert torch.equal(found.reference, old.reference)
    pictures = images(5, 7)
    assert torch.equal(found.network(pictures), old.network(pictures))
    # The network of today says something else with these weights.
    settings = old.config.network
    assert isinstance(settings, EncoderSettings)
    new = LevelClassifier(build_network(replace(settings, normalize=True), old.levels))
    new.load_state_dict(old.network.state_dict(), strict=False)
    assert not torch.allclose(new.network(pictures), old.network.network(pictures))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"3", b"\xff\xfe", b'{"format": 5}'])
def test_a_main_file_that_says_nothing_is_refused(content: bytes, folder: Path) -> None:
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_bundle(folder)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "bundle.json").mkdir(parents=True)
    for place in ("file", "gone", "."):
        with pytest.raises(BundleError, match="is no bundle"):
            read_bundle(tmp_path / place)
    with pytest.raises(BundleError, match="cannot be read"):
        read_bundle(tmp_path / "folder")


def test_without_calibration_there_are_scores_and_no_flags(bundle: Bundle, tmp_path: Path) -> None:
    plain = write_bundle(replace(bundle, calibrated=None), tmp_path / "b")
    again = read_bundle(tmp_path / "b")
    assert again.hash == plain.hash
    assert not (tmp_path / "b" / "calibration.safetensors").exists()
    np.testing.assert_array_equal(
        score(again, images(3, 5)).scores, score(bundle, images(3, 5)).scores
    )
    with pytest.raises(NotCalibrated, match="anomaly calibrate"):
        again.calibration()


def test_images_that_may_no_longer_be_shown_go(bundle: Bundle, folder: Path) -> None:
    assert (folder / "look_alikes.safetensors").exists()
    write_bundle(replace(bundle, look_alikes=None), folder)
    assert read_bundle(folder).look_alikes is None
    assert not (folder / "look_alikes.safetensors").exists()


def test_look_alikes_of_another_size_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    small = LookAlikes(np.zeros((2, 7, 7), np.uint8))
    write_bundle(replace(bundle, look_alikes=small), tmp_path / "b")
    with pytest.raises(BundleError, match=r"holds images of \(7, 7\): this bundle's are"):
        read_bundle(tmp_path / "b")


def test_every_byte_is_json_or_a_tensor(folder: Path) -> None:
    """No file is a pickle or an archive: safetensors are a JSON header and plain numbers."""
    for path in folder.iterdir():
        data = path.read_bytes()
        if path.suffix == ".json":
            json.loads(data)
            continue
        assert path.suffix == ".safetensors", path.name
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        ends = [0, *sorted(entry["data_offsets"][1] for entry in header.values())]
        starts = sorted(entry["data_offsets"][0] for entry in header.values())
        assert starts == ends[:-1]  # no gap between tensors where anything could hide
        assert 8 + length + ends[-1] == len(data)


def test_a_bundle_names_no_folder(folder: Path) -> None:
    for path in folder.iterdir():
        data = path.read_bytes()
        assert b"hospital" not in data, path.name
        assert str(folder).encode() not in data, path.name
    record = json.loads((folder / "bundle.json").read_text())
    assert record["config"]["data"]["root"] == "."

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from (key, *texts(item))
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    assert not [text for text in texts(record) if text.startswith(("/", "~", "\\"))]
    assert record["notice"] == "Research use only. Not a diagnosis."


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the operating system refuse more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "over an earlier bundle"])
def test_a_full_disk_leaves_what_was_there(earlier: bool, bundle: Bundle, tmp_path: Path) -> None:
    if earlier:
        write_bundle(replace(bundle, calibrated=None), tmp_path)
    with (
        files_of_at_most(4000),
        pytest.raises(BundleError, match=r"weights\.safetensors could not be written"),
    ):
        write_bundle(bundle, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    if earlier:
        assert read_bundle(tmp_path).calibrated is None
    else:
        with pytest.raises(BundleError, match="is no bundle"):
            read_bundle(tmp_path)
    write_bundle(bundle, tmp_path)  # space again
    assert read_bundle(tmp_path).calibrated is not None


def test_weights_of_another_network_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Intact files that do not fit each other: the hashes agree, the shapes do not."""
    other = parse_config({"name": "x", "network": {"widths": [16, 8], "features": 4}}).network
    write_bundle(replace(bundle, config=replace(bundle.config, network=other)), tmp_path)
    with pytest.raises(BundleError, match="does not fit"):
        read_bundle(tmp_path)


def test_a_copied_bundle_is_the_same_bundle(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert read_bundle(tmp_path / "copy").hash == read_bundle(folder).hash
    assert issubclass(BundleError, AnomalyError)
