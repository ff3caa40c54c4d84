"""Configuration: what is refused and how it is said, what survives a round trip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.unet import UNetSettings
from anomaly.config import Config, dump, load_config, override, parse_config
from anomaly.detection.kinds import (
    GuardedSettings,
    LedoitWolfSettings,
)
from anomaly.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"alhpa": 0.1}, "unknown configuration key alhpa: did you mean alpha?"),
        ({"trainig": {}}, "unknown configuration key trainig: did you mean training?"),
        ({"training": {"step": 5}}, "training.step: did you mean training.steps?"),
        ({"data": {"label": {}}}, "data.label: did you mean data.labels?"),
        ({"network": {"width": [8]}}, "network.width: did you mean network.widths?"),
        ({"network": {"kind": "unet", "droput": 0.1}}, "did you mean network.dropout?"),
        ({"heatmap": {"zzz": 1}}, "heatmap.zzz: expected one of ['channels', 'rim']"),
        (
            {"heatmap": {"channels": [{"level": [0.1, 1]}]}},
            "heatmap.channels[0].level: did you mean heatmap.channels[0].levels?",
        ),
        ({"detector": {"candidate": []}}, "detector.candidate: did you mean detector.candidates?"),
        (
            {"detector": {"candidates": [{}, {"kind": "mixture", "cluster": 2}]}},
            "detector.candidates[1].cluster: did you mean detector.candidates[1].clusters?",
        ),
        ({"detector": {"candidates": [{"zzz": 2}]}}, "candidates[0].zzz: expected one of ["),
        (
            {"detector": {"candidates": [{"kind": "ledoit_wolf", "clusters": 9}]}},
            "candidates[0].clusters: expected one of ['kind', 'use']",
        ),
        ({3: 1}, "unknown configuration key 3"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(raw: dict[Any, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"name": "x", **raw})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({}, "name"),
        ({"name": ["a"]}, "name"),
        ({"name": "x", "alpha": "often"}, "alpha"),
        ({"name": "x", "training": {"steps": "many"}}, "training.steps"),
        ({"name": "x", "training": {"steps": 1.5}}, "training.steps"),
        ({"name": "x", "training": 5}, "training"),
        ({"name": "x", "data": None}, "data"),
        ({"name": "x", "preprocessing": {"geometry": "crop"}}, "preprocessing.geometry"),
        ({"name": "x", "data": {"labels": {"normal": 3}}}, "data.labels.normal"),
        ({"name": "x", "intensity": {"window": [1]}}, "intensity.window"),
        ({"name": "x", "network": {"kind": "resnet"}}, "network"),
        ({"name": "x", "heatmap": {"channels": 1.5}}, "heatmap.channels"),
        ({"name": "x", "detector": {"candidates": {"use": ["nll"]}}}, "detector.candidates"),
        ({"name": "x", "detector": {"candidates": ["nll"]}}, "detector.candidates.0"),
        (
            {"name": "x", "detector": {"candidates": [{"kind": "forest"}]}},
            "detector.candidates.0.kind",
        ),
        ({"name": "x", "detector": {"fit_on": ["validation", "test"]}}, "detector.fit_on.1"),
    ],
)
def test_a_wrong_type_is_named_by_its_place(raw: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert str(caught.value).startswith(where)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("alpha=0", "alpha"),
        ("alpha=1", "alpha"),
        ("alpha=.nan", "alpha"),
        ("levels.schedule=quadratic", "levels.schedule"),
        ("levels.steps=0", "levels.steps"),
        ("preprocessing.size=7", "preprocessing.size"),
        ("preprocessing.grey_levels=1", "preprocessing.grey_levels"),
        ("augmentation.rotate=-1", "augmentation.rotate"),
        ("augmentation.gamma=.nan", "augmentation.gamma"),
        ("augmentation.zoom=1", "augmentation.zoom"),
        ("augmentation.shift=.inf", "augmentation.shift"),
        ("training.steps=0", "training.steps"),
        ("training.ema_decay=1", "training.ema_decay"),
        ("training.seed=-1", "training.seed"),
        ("training.ce_from=1.5", "training.ce_from"),
        ("features.grid=0", "features.grid"),
        ("features.border=4", "features.border"),
        ("detector.candidates=[]", "detector.candidates"),
        ("detector.candidates=[{use: []}]", "detector.candidates"),
        ("detector.candidates=[{clusters: 0}]", "detector.candidates"),
        ("detector.candidates=[{use: [evidences]}]", "detector.candidates"),
        ("detector.candidates=[{use: [energy]}, {use: [nll]}]", "detector.candidates"),
        ("detector.fit_on=[train]", "detector.fit_on"),
        ("detector.fit_on=[]", "detector.fit_on"),
        ("detector.nuisance_copies=-1", "detector.nuisance_copies"),
        ("data.workers=-1", "data.workers"),
        ("data.seed=-1", "data.seed"),
        ("data.normal=healthy", "data.normal"),
        ("features.noise_to_signal=[1, 0.5]", "features.noise_to_signal"),
        ("heatmap.channels=[{levels: [100, 200], smoothing: 1}]", "heatmap.channels"),
        ("heatmap.channels=[{levels: [0.1, 1], smoothing: -1}]", "heatmap.channels"),
        ("heatmap.channels=[]", "heatmap.channels"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        override(Config("x"), [setting])


TWO = [{"use": ["energy"]}, {"use": ["evidence_peak"], "guard": ["nll"], "kind": "guarded"}]


@pytest.mark.parametrize(
    ("fit_on", "copies"),
    [(["validation"], 1), (["train", "validation"], 0), (["validation"], 0)],
)
def test_a_choice_needs_scans_to_fit_on_and_others_to_choose_by(
    fit_on: list[str], copies: int
) -> None:
    raw = {"candidates": TWO, "fit_on": fit_on, "nuisance_copies": copies}
    with pytest.raises(ConfigError, match=r"candidates holds 2: choosing one needs fit_on"):
        parse_config({"name": "x", "detector": raw})
    # One detector is no choice: it needs neither.
    one = parse_config({"name": "x", "detector": {**raw, "candidates": TWO[:1]}})
    assert len(one.detector.candidates) == 1


def test_a_network_of_colours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.channels is 3: expected 1"):
        parse_config({"name": "x", "network": {"channels": 3}})


@pytest.mark.parametrize(
    ("use", "guard"), [("nll", "nll"), ("profile", "profile_3"), ("octave_0.5_1", "octave")]
)
def test_a_feature_is_in_use_or_on_guard(use: str, guard: str) -> None:
    candidate = {"kind": "guarded", "use": [use, "energy"], "guard": [guard]}
    with pytest.raises(ConfigError, match="is in use and in guard"):
        parse_config({"name": "x", "detector": {"candidates": [candidate]}})


def test_what_earlier_versions_wrote_beside_every_candidate_is_read() -> None:
    idle = {"guard": [], "components": 100, "clusters": 3, "neighbours": 5}
    old = {"candidates": [{"use": ["nll"], "kind": "ledoit_wolf", **idle}]}
    config = parse_config({"name": "x", "detector": old})
    assert config.detector.candidates == (LedoitWolfSettings(use=("nll",)),)
    # What was set to have an effect must have one.
    old["candidates"][0]["neighbours"] = 7
    with pytest.raises(ConfigError, match=r"candidates\[0\].neighbours"):
        parse_config({"name": "x", "detector": old})


def test_candidates_survive_the_round_trip(tmp_path: Path) -> None:
    raw = {"candidates": TWO, "fit_on": ["train", "validation"], "nuisance_copies": 2, "seed": 3}
    config = parse_config({"name": "x", "detector": raw})
    assert config.detector.candidates == (
        LedoitWolfSettings(use=("energy",)),
        GuardedSettings(use=("evidence_peak",), guard=("nll",)),
    )
    assert config.detector.fit_on == ("train", "validation")
    assert (config.detector.nuisance_copies, config.detector.seed) == (2, 3)
    again = load_config(write(tmp_path / "c.yaml", dump(config)))
    assert again == config
    assert again.hash == config.hash
    # The order is in it: of equal margins the first wins.
    turned = parse_config({"name": "x", "detector": {**raw, "candidates": TWO[::-1]}})
    assert turned.hash != config.hash


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("profile_15", True),
        ("profile_16", False),
        ("profile_", False),
        ("residual_0.25", True),
        ("residual_0.3", False),
        ("energy", True),
        ("energy_0.25_35", True),  # 6 x 6 cells inside the border
        ("energy_0.25_36", False),
        ("evidence_top", True),
        ("score", False),
    ],
)
def test_a_feature_in_use_is_one_of_this_configuration(name: str, known: bool) -> None:
    raw = {"name": "x", "detector": {"candidates": [{"use": ["nll", name]}]}}
    if known:
        assert parse_config(raw).detector.candidates[0].use == ("nll", name)
        return
    with pytest.raises(
        ConfigError, match=f"detector.candidates use '{name}': expected groups .'nll', 'nll_excess'"
    ):
        parse_config(raw)


def test_the_kind_chooses_the_network() -> None:
    assert parse_config({"name": "x"}).network == EncoderSettings()
    plain = parse_config({"name": "x", "network": {"widths": [8, 16]}}).network
    assert plain == EncoderSettings(widths=(8, 16))
    unet = parse_config({"name": "x", "network": {"kind": "unet", "widths": [8]}}).network
    assert unet == UNetSettings(widths=(8,))
    with pytest.raises(ConfigError, match=r"unknown configuration key network\.patch"):
        parse_config({"name": "x", "network": {"kind": "unet", "patch": 2}})


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "name: x\ntraining: {steps: 7, batch_size: 3}\n")
    config = load_config(
        path,
        [
            "training.steps=9",
            "network.widths=[4, 8]",
            "data.patient_pattern=null",
            "data.labels.ill=[ill/*]",
            "data.labels.normal=[ok/*]",
            "alpha=1e-2",
            "name=a=b",
        ],
    )
    assert config.training.steps == 9
    assert config.training.batch_size == 3
    assert config.network.widths == (4, 8)
    assert config.data.patient_pattern is None
    assert config.data.labels == {"ill": ["ill/*"], "normal": ["ok/*"]}
    assert config.alpha == 0.01
    assert config.name == "a=b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.steps", "expected section.key=value"),
        ("=5", "expected section.key=value"),
        ("name.first=5", "name is a value, not a section"),
        ("training.steps=[1", "is not YAML"),
        ("training..steps=5", "unknown configuration key"),
        ("=", "expected section.key=value"),
    ],
)
def test_a_malformed_override_says_what_was_expected(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "c.yaml", "name: x\n"), [text])
    assert said in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    again = load_config(write(tmp_path / "c.yaml", dump(config)))
    assert again == config
    assert again.hash == config.hash
    assert dump(again) == dump(config)


def test_odd_text_survives_the_round_trip(tmp_path: Path) -> None:
    config = parse_config(
        {"name": "Zürich # 3: 'q' \N{GRINNING FACE}", "data": {"root": "a #b/c: d", "masks": "no"}}
    )
    assert load_config(write(tmp_path / "c.yaml", dump(config))) == config


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {}']",
        "name: !!python/object/new:subprocess.check_call [['touch', '{}']]",
        "!!python/object/apply:os.system ['touch {}']",
    ],
)
def test_a_configuration_is_never_executed(text: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = write(tmp_path / "c.yaml", text.format(ran))
    value = text.format(ran).removeprefix("name: ")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(write(tmp_path / "d.yaml", "name: x\n"), [f"name={value}"])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a\n- b\n", "holds no keys"), ("", "holds no keys"), ("a: [", "is not YAML")],
)
def test_a_file_without_keys_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path / "c.yaml", text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        load_config(tmp_path / "gone.yaml")


def test_the_hash_is_of_the_content_not_of_its_spelling() -> None:
    plain = parse_config({"name": "x", "alpha": 0.1, "training": {"steps": 5}})
    spelled = parse_config(
        {
            "training": {"steps": 5, "batch_size": plain.training.batch_size},
            "alpha": 0.1,
            "name": "x",
        }
    )
    assert spelled.hash == plain.hash


def _changed(value: Any) -> Any:
    """Another value of the same type that passes the checks of every setting."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.75 + 0.01
    if isinstance(value, list):
        return [_changed(item) for item in value]
    return f"{value}x"


def test_every_setting_is_in_the_hash() -> None:
    config = parse_config({"name": "x"})
    raw = yaml.safe_load(dump(config))
    seen = {config.hash}
    # Words from fixed lists get another word of theirs; the rest of a section is numbers or text.
    words = {
        "intensity.colour": "luminance",
        "gate.modalities": ["CR"],
        "gate.body_parts": ["CHEST"],
        "gate.views": ["PA"],
        "gate.max_frames": 100,
        "levels.schedule": "cosine",
        "network.patch": 4,
        "intensity.voi": "file",
        "intensity.window": [40, 400],
        "preprocessing.size": 72,
        "preprocessing.geometry": "stretch",
        "features.grid": 16,
        "preprocessing.intensity": "full",
        "training.precision": "bfloat16",
        "features.precision": "bfloat16",
        "results.maps": "flagged",
        "training.level_weights": "relative",
        "detector.candidates": [{"use": ["nll"]}],
        "detector.fit_on": ["train", "validation"],
        "heatmap.channels": [{"levels": [0.1, 0.5], "smoothing": 1.0}],
        "data.labels": {"normal": ["a"]},
        "data.sites": {"north": ["n/*"]},
        "data.patient_pattern": "p",
        "data.masks": "m",
        "data.splits": {"train": 1.0},
    }
    count = 1
    for section, values in raw.items():
        settings = values if isinstance(values, dict) else {None: values}
        for key, value in settings.items():
            name = section if key is None else f"{section}.{key}"
            # Settled by others, or of one value.
            if name in ("network.kind", "data.normal", "network.channels"):
                continue
            new = words.get(name, _changed(value))
            changed = yaml.safe_load(yaml.safe_dump(raw))
            if key is None:
                changed[section] = new
            else:
                changed[section][key] = new
            seen.add(parse_config(changed).hash)
            count += 1
    assert count > 40
    assert len(seen) == count


# --- what could mean two things ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("training:\n  steps: 5\n  steps: 9", "'steps' twice, the second time on line 4"),
        ("name: again", "'name' twice"),
        ("training: {steps: 010}", "010 on line 2"),
        ("training: {steps: 089}", "089 on line 2"),
        ("training: {steps: 1:30}", "1:30 on line 2"),
        ("data: {seconds: 1:30.5}", "1:30.5 on line 2"),
        ("data: {allow_synthetic: yes}", "yes on line 2"),
        ("data: {labels: {normal: [a], no: [b]}}", "no on line 2"),
        ("data: {labels: {normal: [a], 2020-01-02: [b]}}", "2020-01-02 on line 2"),
        ("training: {steps: true}", "training.steps is true: expected a int"),
        ("training: {learning_rate: .nan}", "training.learning_rate is nan"),
        ("data: {seconds: .inf}", "data.seconds is inf"),
        ("network: {widths: [8, true]}", "network.widths"),
        ("data: {seed: 9223372036854775808}", "data.seed is 9223372036854775808"),
        ("detector: {seed: -1}", "detector.seed is -1"),
        ("preprocessing: {size: 30}", "preprocessing.size is 30"),
        ("training: {steps: '5'}", "training.steps is '5', a text"),
        ("data: {allow_synthetic: 1}", "data.allow_synthetic is 1: expected true or false"),
        ("data: &a {seed: 1}\ntraining: *a", "has an alias on line"),
        ("detector: {seed: 18446744073709551616}", "detector.seed is 18446744073709551616"),
        ("training: {steps: 10_00}", "10_00 on line 2, a number to some readers"),
        ("training: {steps: 0b11}", "0b11 on line 2, a number to some readers"),
        ("training: {<<: {steps: 1}, steps: 2}", "merges keys (<<) on line 2"),
        ("training: {steps: !!int '5'}", "!!int on line 2"),
        ("data: {labels: {normal: [a], Gr\u00fcn: [b], Gru\u0308n: [c]}}", "twice"),
        ("network: {widths: []}", "network.widths is (): expected 1 or more"),
        ("network: {patch: 0}", "network.patch is 0: expected 1 or more"),
        ("network: {blocks: -1}", "network.blocks is -1: expected 1 or more"),
        ("network: {features: 0}", "network.features is 0: expected 1 or more"),
        ("network: {kind: unet, widths: [0]}", "network.widths is (0,): expected 1 or more"),
        ("features: {grid: 1000000000}", "features.grid is 1000000000: expected at most 1,024"),
        ("levels: {steps: 1000000000}", "levels.steps is 1000000000: expected at most 10,000"),
        ("preprocessing: {size: 1000000}", "preprocessing.size is 1000000: expected at most 4,096"),
        ("data: {workers: 100000}", "data.workers is 100000: expected at most 1,024"),
        ("augmentation: {rotate: 1e300}", "augmentation.rotate is 1e+300: expected at most 180"),
        ("data: {masks: ../masks}", "data.masks is '../masks': expected a folder within"),
        ("data: {masks: /masks}", "data.masks is '/masks': expected a folder within"),
        (f"data: {'[' * 3000}{']' * 3000}", "nested too deep"),
        ("training: {learning_rate: 2020-99-99}", "a date"),
    ],
)
def test_what_could_mean_two_things_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"name: a\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(path)


def test_quotes_make_a_text_of_anything(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: '010'\ndata: {labels: {normal: [a], 'no': [b], '2020-01-02': [c]}}\n")
    config = load_config(path)
    assert config.name == "010"
    assert list(config.data.labels) == ["normal", "no", "2020-01-02"]
    path.write_text(dump(config))
    assert load_config(path) == config


@pytest.mark.parametrize("text", ["08", "1e-2", "1:30", "no", "2020-01-02", "0x1f", "~", ""])
def test_a_text_that_looks_like_something_else_stays_a_text(tmp_path: Path, text: str) -> None:
    config = parse_config({"name": text, "data": {"labels": {"normal": ["a"], text: [text]}}})
    assert load_config(write(tmp_path / "c.yaml", dump(config))) == config


@pytest.mark.parametrize("setting", ["nan", ".nan", "NaN", "'nan'", ".inf"])
def test_a_rate_that_is_no_number_is_refused_however_it_is_said(
    tmp_path: Path, setting: str
) -> None:
    path = write(tmp_path / "c.yaml", "name: x\n")
    with pytest.raises(ConfigError, match="learning_rate"):
        load_config(path, [f"training.learning_rate={setting}"])


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes one without a point for a text."""
    path = write(tmp_path / "c.yaml", "name: x\nalpha: 1e-2\ntraining: {learning_rate: 2E-3}\n")
    config = load_config(path, ["training.clip_norm=1e+1"])
    assert (config.alpha, config.training.learning_rate) == (0.01, 0.002)
    assert config.training.clip_norm == 10


@pytest.mark.parametrize("spelled", ["masks", "masks/", "./masks", "masks//", ".//masks/."])
def test_a_folder_of_masks_is_one_however_it_is_spelled(spelled: str) -> None:
    assert parse_config({"name": "a", "data": {"masks": spelled}}).data.masks == "masks"


def test_a_setting_is_set_once(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "name: x\n")
    with pytest.raises(ConfigError, match="alpha is set twice"):
        load_config(path, ["alpha=0.1", "training.steps=5", "alpha=0.2"])


def test_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("name: Überblick\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not UTF-8 \(byte 6 is 0xdc\)"):
        load_config(path)
