"""The training loop: resume, stop, damage, full disks, bad scans, processes, imports."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.cdm.density import bits_per_dim, log_density
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.health import HasParts, NetworkHealth, network_health
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import POWERS, CDMLoss, LossTerms, inverse_error_weights
from anomaly.cdm.network import LevelClassifier, NetworkSettings, build_network
from anomaly.cdm.unet import UNetSettings
from anomaly.config import load_config
from anomaly.errors import CheckpointError, ConfigError, NonFiniteLoss, TrainingError
from anomaly.training.checkpoint import read_checkpoint, read_metrics
from anomaly.training.loop import FitResult, Observers, TrainingFolder, fit
from anomaly.training.settings import TrainingSettings
from anomaly.training.state import Batch
from anomaly.training.validation import validation_metrics

CONFIGS = Path(__file__).parents[1] / "configs"
LEVELS = NoiseLevels.from_name("log_snr", 10)
ENCODER = EncoderSettings(widths=(4, 8), features=4)
UNET = UNetSettings(widths=(8, 8), blocks=1, dropout=0.5)
SETTINGS = TrainingSettings(
    steps=12, batch_size=4, warmup_steps=3, validate_every=2, checkpoint_every=3, seed=3
)
SPECTRUM = 0.3 / (1 + torch.arange(8.0)[:, None] + torch.arange(8.0)[None])[None] ** 2


def cdm_loss(settings: NetworkSettings = ENCODER, seed: int = 0) -> CDMLoss:
    torch.manual_seed(seed)
    return CDMLoss(build_network(settings, LEVELS), LEVELS, 1e-3)


def images(count: int, seed: int) -> Tensor:
    """Gaussian textures (count, 1, 8, 8), small enough to stay near [-1, 1]."""
    base = CosineGaussianCDM(torch.zeros(1, 8, 8), SPECTRUM, LEVELS)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 1, 8, 8, generator=generator) * SPECTRUM.sqrt()
    return base.rows.T @ z @ base.columns


def batches(start: int, size: int = 4, rows: slice = slice(None)) -> Iterator[Batch]:
    """What step ``s`` sees is a function of ``s``, as the loop requires."""
    for step in range(start, 1000):
        yield Batch(images(size, 100 + step)[rows], [f"s{step}i{i}" for i in range(size)][rows])


def train(folder: Path, settings: TrainingSettings = SETTINGS, **options: Any) -> FitResult:
    chosen = {"batches": batches, "grey_levels": 256, "conditions": {"data": "f"}, **options}
    if "loss" not in chosen:  # building one moves the global random stream
        chosen["loss"] = cdm_loss()
    place = TrainingFolder(folder, chosen.pop("conditions"))
    names = ("validate", "on_metrics", "on_step", "should_stop")
    observers = Observers(**{name: chosen.pop(name) for name in names if name in chosen})
    return fit(settings=settings, folder=place, observers=observers, **chosen)


def assert_same(one: Any, other: Any) -> None:
    """Bit-identical nested containers of tensors and plain values."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


# --- Resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "stop_at"), [(ENCODER, 1), (ENCODER, 6), (UNET, 5)], ids=repr)
def test_stopped_and_resumed_equals_uninterrupted(
    network: NetworkSettings, stop_at: int, tmp_path: Path, device: torch.device
) -> None:
    whole: list[tuple[int, float]] = []
    full = train(
        tmp_path / "a",
        loss=cdm_loss(network).to(device),
        on_step=lambda *row: whole.append(row),
    )
    parts: list[tuple[int, float]] = []
    first = train(
        tmp_path / "b",
        loss=cdm_loss(network).to(device),
        on_step=lambda *row: parts.append(row),
        should_stop=lambda: len(parts) == stop_at,
    )
    assert (first.step, first.finished) == (stop_at, False)
    torch.manual_seed(12345)  # what ran before must not matter
    # Other start weights: all of them must come from the checkpoint.
    second = train(
        tmp_path / "b",
        loss=cdm_loss(network, seed=9).to(device),
        on_step=lambda *row: parts.append(row),
    )
    assert (full.step, full.finished) == (second.step, second.finished) == (12, True)
    assert [step for step, _ in whole] == list(range(1, 13))
    assert parts == whole
    assert_same(full.network.state_dict(), second.network.state_dict())
    one, other = (read_checkpoint(tmp_path / run / "checkpoint.pt") for run in "ab")
    assert_same(one, other)


def test_training_leaves_the_global_random_stream_alone(tmp_path: Path) -> None:
    loss = cdm_loss(UNET)
    torch.manual_seed(5)
    train(tmp_path, TrainingSettings(steps=2, batch_size=4), loss=loss)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_averaged_weights_differ_from_the_last_and_follow_them(tmp_path: Path) -> None:
    loss = cdm_loss()
    result = train(tmp_path, loss=loss)
    assert not result.network.training
    for averaged, last in zip(result.network.parameters(), loss.network.parameters(), strict=True):
        assert not torch.equal(averaged, last)
        assert not averaged.requires_grad
        torch.testing.assert_close(averaged, last, rtol=0, atol=0.05)


def test_average_is_the_recursion_by_hand(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    loss = cdm_loss()
    settings = TrainingSettings(steps=3, batch_size=4, ema_decay=0.15)

    def keep(_: int, __: float) -> None:
        seen.append(loss.network.stem.weight.detach().clone())  # type: ignore[union-attr,operator]

    start = cdm_loss().network.stem.weight.detach()  # type: ignore[union-attr,operator]
    result = train(tmp_path, settings, loss=loss, on_step=keep)
    # Decay min(0.15, s / (s + 10)) = 1/11, 0.15 (below 2/12 = 0.167), 0.15.
    expected = start
    for decay, weight in zip((1 / 11, 0.15, 0.15), seen, strict=True):
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(result.network.stem.weight, expected)  # type: ignore[union-attr]


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    steps: list[int] = []
    again = train(tmp_path, loss=cdm_loss(seed=9), on_step=lambda step, _: steps.append(step))
    assert (again.step, again.finished, steps) == (12, True, [])
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_another_seed_draws_other_noise(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {3: [], 4: []}
    for seed, seen in losses.items():
        settings = TrainingSettings(steps=2, batch_size=4, seed=seed)
        train(tmp_path / str(seed), settings, on_step=lambda _, loss, seen=seen: seen.append(loss))
    assert losses[3][0] != losses[4][0]


def validate(network: nn.Module, _: int) -> dict[str, Any]:
    assert not network.training
    return {"weight": float(next(network.parameters()).abs().sum())}


def test_metrics_after_a_crash_hold_each_step_once(tmp_path: Path) -> None:
    full = tmp_path / "full"
    train(full, validate=validate)

    def crash(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(start), start):
            if step == 8:
                raise KeyboardInterrupt
            yield batch

    crashed = tmp_path / "crashed"
    with pytest.raises(KeyboardInterrupt):
        train(crashed, batches=crash, validate=validate)
    # Step 8 is recorded; the checkpoint is of step 6, and 8 will be trained again.
    assert [m["step"] for m in read_metrics(crashed / "metrics.jsonl")] == [0, 2, 4, 6, 8]
    assert read_checkpoint(crashed / "checkpoint.pt")["step"] == 6
    with (crashed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "wei')  # killed while writing
    assert [m["step"] for m in read_metrics(crashed / "metrics.jsonl")] == [0, 2, 4, 6, 8]
    train(crashed, validate=validate)
    records = read_metrics(crashed / "metrics.jsonl")
    assert [m["step"] for m in records] == [0, 2, 4, 6, 8, 10, 12]
    assert records == read_metrics(full / "metrics.jsonl")


def test_metrics_of_a_run_without_checkpoint_are_started_anew(tmp_path: Path) -> None:
    def crash(_: int) -> Iterator[Batch]:
        yield from ()
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, batches=crash, validate=validate)
    assert [m["step"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [0]


def test_there_are_no_metrics_before_training(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("validate_every", 0),
        ("checkpoint_every", -1),
        ("learning_rate", 0.0),
        ("clip_norm", -1.0),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("ce_weight", -1e-3),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name} is {value}"):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]


def test_checkpoint_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"another training: data was f and is e"):
        train(tmp_path, conditions={"data": "e"})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_how_often_something_is_looked_at_may_change(tmp_path: Path) -> None:
    train(tmp_path, should_stop=lambda: True)
    again = train(tmp_path, settings=replace(SETTINGS, checkpoint_every=1, examine_every=1))
    assert again.finished


def test_another_learning_rate_is_named(tmp_path: Path) -> None:
    train(tmp_path, should_stop=lambda: True)
    with pytest.raises(CheckpointError, match=r"training\.learning_rate was .* and is 0\.5"):
        train(tmp_path, settings=replace(SETTINGS, learning_rate=0.5))


def test_more_steps_can_be_asked_for_and_fewer_than_done_not(tmp_path: Path) -> None:
    first = train(tmp_path)
    more = train(tmp_path, settings=replace(SETTINGS, steps=SETTINGS.steps + 3))
    assert (first.step, more.step) == (SETTINGS.steps, SETTINGS.steps + 3)
    with pytest.raises(CheckpointError, match=f"is at step {more.step} already"):
        train(tmp_path, settings=SETTINGS)


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_truncated_checkpoint_is_refused(keep: int, tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is damaged"):
        train(tmp_path)


def test_flipped_byte_of_a_weight_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weight = max(archive.infolist(), key=lambda entry: entry.file_size)
        inside = data.find(archive.read(weight), weight.header_offset) + weight.file_size // 2
    data[inside] ^= 0x01
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        train(tmp_path)


def test_flipped_byte_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "checkpoint.pt"
    saved, data = read_checkpoint(path), path.read_bytes()
    refused = 0
    for place in torch.linspace(0, len(data) - 1, 60).long().tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            assert_same(read_checkpoint(path), saved)  # padding, a time stamp
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        train(tmp_path)


# --- Full disks ---------------------------------------------------------------------------------


def assert_survived_and_resumes(folder: Path, before: bytes, make_room: Any) -> None:
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert read_checkpoint(folder / "checkpoint.pt")["step"] == 3
    assert sorted(p.name for p in folder.glob("checkpoint*")) == ["checkpoint.pt"]
    make_room()
    steps: list[int] = []
    assert train(folder, on_step=lambda step, _: steps.append(step)).finished
    assert steps == list(range(4, 13))


def test_file_that_may_not_grow_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    seen: list[int] = []
    train(tmp_path, on_step=lambda step, _: seen.append(step), should_stop=lambda: seen[-1:] == [3])
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step 6 could not be written.*untouched"):
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_survived_and_resumes(tmp_path, before, lambda: None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk_leaves_the_previous_checkpoint(small_disk: Path) -> None:
    folder = small_disk / "run"
    seen: list[int] = []
    train(folder, on_step=lambda step, _: seen.append(step), should_stop=lambda: seen[-1:] == [3])
    before = (folder / "checkpoint.pt").read_bytes()
    disk = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - len(before) // 2))
    with pytest.raises(CheckpointError, match=r"step 6 could not be written.*untouched"):
        train(folder)
    assert_survived_and_resumes(folder, before, filler.unlink)


def test_full_disk_for_metrics_is_a_checkpoint_error_and_loses_no_record(small_disk: Path) -> None:
    folder = small_disk / "run"
    seen: list[int] = []
    options: dict[str, Any] = {"validate": lambda *_: {"text": "x" * 5000}}
    train(
        folder,
        on_step=lambda step, _: seen.append(step),
        should_stop=lambda: seen[-1:] == [3],
        **options,
    )
    disk = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize))
    with pytest.raises(CheckpointError, match="could not be written"):
        train(folder, **options)
    assert [m["step"] for m in read_metrics(folder / "metrics.jsonl")] == [0, 2]
    filler.unlink()
    train(folder, **options)
    assert [m["step"] for m in read_metrics(folder / "metrics.jsonl")] == [0, 2, 4, 6, 8, 10, 12]


# --- Non-finite losses --------------------------------------------------------------------------


class RecordingLoss(CDMLoss):
    """Remembers the levels it was asked for."""

    drawn: list[list[int]]

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor) -> LossTerms:
        self.__dict__.setdefault("drawn", []).append(t.tolist())
        return super().forward(x_0, t, eps)


def poisoned(start: int, at: int = 7, row: int = 2) -> Iterator[Batch]:
    for step, batch in enumerate(batches(start), start):
        if step == at - 1:  # step s sees batch s - 1
            batch.images[row, 0, 3, 3] = torch.nan
        yield batch


def test_a_poisoned_scan_is_named_with_step_and_level(tmp_path: Path) -> None:
    loss = RecordingLoss(cdm_loss().network, LEVELS, 1e-3)
    with pytest.raises(NonFiniteLoss) as caught:
        train(tmp_path, loss=loss, batches=poisoned)
    message = str(caught.value)
    assert "loss is nan" in message
    assert "at step 7," in message
    assert re.findall(r"s6i\d \(level \d+\)", message) == [f"s6i2 (level {loss.drawn[6][2]})"]
    saved = read_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["step"] == 6
    assert all(torch.isfinite(v).all() for v in saved["network"].values())
    # The network in memory is usable too, and the run goes on once the scan is mended.
    assert all(torch.isfinite(p).all() for p in loss.network.parameters())
    assert train(tmp_path).finished


def test_many_poisoned_scans_are_counted_not_listed(tmp_path: Path) -> None:
    def all_bad(start: int) -> Iterator[Batch]:
        for batch in batches(start, size=12):
            batch.images.fill_(torch.nan)
            yield batch

    with pytest.raises(NonFiniteLoss, match="and others") as caught:
        train(tmp_path, TrainingSettings(steps=2, batch_size=12), batches=all_bad)
    assert len(re.findall(r"\(level \d+\)", str(caught.value))) == 8
    assert not (tmp_path / "checkpoint.pt").exists()


class InfiniteSlope(nn.Module):
    """Finite logits whose gradient is infinite: the root of a weight at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(LEVELS)))

    def forward(self, x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1, keepdim=True) * torch.sqrt(self.weight)


def test_an_infinite_gradient_stops_before_it_reaches_weights_or_checkpoint(
    tmp_path: Path,
) -> None:
    network = InfiniteSlope()
    with pytest.raises(NonFiniteLoss, match=r"gradient's norm (nan|inf) at step 1,"):
        train(
            tmp_path,
            TrainingSettings(steps=2, batch_size=4, checkpoint_every=1),
            loss=CDMLoss(network, LEVELS, 1e-3),
        )
    assert not network.weight.detach().any()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_non_finite_loss_is_a_training_error() -> None:
    assert issubclass(NonFiniteLoss, TrainingError)


# --- Learning -----------------------------------------------------------------------------------


def test_training_on_gaussian_textures_approaches_the_optimum(
    tmp_path: Path, device: torch.device
) -> None:
    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exact = CosineGaussianCDM(torch.zeros(1, 8, 8), SPECTRUM, LEVELS)
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.exact(x)
            return logits

    held_out = images(200, seed=1)

    def judged(network: nn.Module) -> dict[str, Any]:
        return validation_metrics(
            cdm_loss().to(device),
            network.to(device),
            held_out,
            grey_levels=1 << 12,
            seed=0,
            batch=64,
        )

    optimum = judged(Oracle())
    before = judged(cdm_loss().network)
    settings = TrainingSettings(
        steps=150, batch_size=16, warmup_steps=10, learning_rate=1e-2, ema_decay=0.9
    )
    result = train(
        tmp_path,
        settings,
        batches=lambda start: batches(start, size=16),
        grey_levels=1 << 12,
        loss=cdm_loss().to(device),
    )
    after = judged(result.network)
    # Nothing beats the optimum, and training goes towards it.
    assert optimum["bits_per_dim"] < after["bits_per_dim"]
    left, gap = (run["denoising"] - optimum["denoising"] for run in (after, before))
    assert 0 < left < 0.8 * gap


def test_validation_of_the_oracle_gives_its_bits_and_its_bayes_error() -> None:
    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exact = CosineGaussianCDM(torch.zeros(1, 8, 8), SPECTRUM, LEVELS)
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.exact(x)
            return logits

    held_out = images(480, seed=2)
    metrics = validation_metrics(
        cdm_loss(), Oracle(), held_out, grey_levels=1 << 16, seed=0, batch=100
    )
    # Cells of 3e-5 change no density here: the figure is that of the images themselves.
    log_p = log_density(Oracle()(held_out), held_out)[:, 0].detach()
    expected = float(bits_per_dim(log_p, 64, 1 << 16).mean())
    assert metrics["bits_per_dim"] == pytest.approx(expected, abs=1e-3)
    # Twelve levels, 40 images each; rung r of ten holds the levels with floor(10 t / 12) = r.
    error = LEVELS.alpha[:, None] ** 2 * SPECTRUM.flatten()
    error = (error / (error + LEVELS.sigma[:, None] ** 2)).mean(1)
    error[0] = 1  # of a clean image nothing is known about eps
    rung = torch.arange(12) * 10 // 12
    by_level = [float(error[rung == r].mean()) for r in range(10)]
    # A mean of 40 * 64 squares has a relative standard error of sqrt(2 / 2560) = 2.8 %.
    assert metrics["denoising_by_level"] == pytest.approx(by_level, rel=0.12, abs=1e-4)
    assert metrics["denoising"] == pytest.approx(float(error.mean()), rel=0.03)
    assert json.loads(json.dumps(metrics)) == metrics
    again = validation_metrics(
        cdm_loss(), Oracle(), held_out, grey_levels=1 << 16, seed=0, batch=480
    )
    assert again["denoising"] == pytest.approx(metrics["denoising"], rel=1e-5)


# --- Several processes --------------------------------------------------------------------------

PARALLEL = TrainingSettings(steps=6, batch_size=8, warmup_steps=3, checkpoint_every=3, seed=1)


def run_one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    mine = slice(4 * rank, 4 * rank + 4)
    loss = cdm_loss()
    fit(
        loss,
        lambda start: batches(start, 8, mine),
        PARALLEL,
        TrainingFolder(folder / "two", {"data": "f"}),
        grey_levels=256,
    )
    torch.save(loss.network.state_dict(), folder / f"weights{rank}.pt")

    def last_is_poisoned(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(start, 8, mine), start):
            if step == PARALLEL.steps - 1 and rank == 1:
                batch.images[0] = torch.nan
            yield batch

    message = "no error"
    try:
        fit(
            cdm_loss(),
            last_is_poisoned,
            PARALLEL,
            TrainingFolder(folder / "poisoned", {"data": "f"}),
            grey_levels=256,
        )
    except NonFiniteLoss as error:
        message = str(error)
    (folder / f"message{rank}").write_text(message)

    stop_on_one = rank == 1
    stopped = fit(
        cdm_loss(),
        lambda start: batches(start, 8, mine),
        PARALLEL,
        TrainingFolder(folder / "stopped", {"data": "f"}),
        grey_levels=256,
        observers=Observers(should_stop=lambda: stop_on_one),
    )
    (folder / f"stopped{rank}").write_text(str(stopped.step))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    code = "import sys, pathlib, test_training as t; t.run_one_of_two(int(sys.argv[1]), {0!r})"
    code = code.format(str(folder)).replace(f"{str(folder)!r}", f"pathlib.Path({str(folder)!r})")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for run in runs:
            output, _ = run.communicate(timeout=240)
            assert run.returncode == 0, output
    finally:
        for run in runs:
            run.kill()
    return folder


def test_two_processes_learn_what_one_learns(two_processes: Path, tmp_path: Path) -> None:
    loss = cdm_loss()
    train(tmp_path, PARALLEL, loss=loss, batches=lambda start: batches(start, 8))
    one = read_checkpoint(tmp_path / "checkpoint.pt")
    two = read_checkpoint(two_processes / "two" / "checkpoint.pt")
    moved = False
    for part in ("network", "averaged"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=0, atol=1e-5)
    for name, value in cdm_loss().network.state_dict().items():
        moved |= bool((value - one["network"][name]).abs().max() > 1e-3)
    assert moved
    weights = [torch.load(two_processes / f"weights{rank}.pt") for rank in (0, 1)]
    assert_same(*weights)


def test_one_poisoned_process_stops_both_and_spoils_no_checkpoint(two_processes: Path) -> None:
    messages = [(two_processes / f"message{rank}").read_text() for rank in (0, 1)]
    assert all("at step 6," in message for message in messages)
    assert re.findall(r"s\di\d", messages[1]) == ["s5i4"]
    saved = read_checkpoint(two_processes / "poisoned" / "checkpoint.pt")
    assert saved["step"] == 3
    assert all(torch.isfinite(v).all() for v in saved["network"].values())


def test_a_stop_asked_of_one_process_stops_both(two_processes: Path) -> None:
    assert [(two_processes / f"stopped{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    assert read_checkpoint(two_processes / "stopped" / "checkpoint.pt")["step"] == 1


def test_batches_that_processes_cannot_share_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.training.loop.rank_and_world", lambda: (0, 3))
    with pytest.raises(ConfigError, match=r"batch_size 4 cannot be shared evenly by 3"):
        train(tmp_path)


# --- Torch alone --------------------------------------------------------------------------------


def test_learning_needs_torch_alone(tmp_path: Path) -> None:
    # A folder with torch and what torch itself requires, and nothing else but the library.
    needed: set[str] = set()
    waiting = ["torch"]
    while waiting:
        name = normal_name(re.split(r"[^\w.-]", waiting.pop())[0])
        if name not in needed:
            needed.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):
                waiting += [r for r in metadata.requires(name) or [] if "extra" not in r]
    site = tmp_path / "site"
    site.mkdir()
    for module, owners in metadata.packages_distributions().items():
        if needed.intersection(map(normal_name, owners)):
            for folder in map(Path, filter(None, sys.path)):
                for found in (folder / module, folder / f"{module}.py"):
                    link = site / found.name
                    if found.exists() and not link.exists():
                        link.symlink_to(found)
    script = """
        import importlib
        import pkgutil
        import sys
        from pathlib import Path

        import torch

        import anomaly.cdm

        for module in pkgutil.iter_modules(anomaly.cdm.__path__):
            importlib.import_module(f"anomaly.cdm.{module.name}")
        from anomaly.cdm.levels import NoiseLevels
        from anomaly.cdm.loss import CDMLoss
        from anomaly.cdm.encoder import EncoderSettings
        from anomaly.cdm.network import build_network
        from anomaly.training.loop import TrainingFolder, fit
        from anomaly.training.settings import TrainingSettings
        from anomaly.training.state import Batch

        torch.set_num_threads(1)
        levels = NoiseLevels.from_name("log_snr", 10)
        loss = CDMLoss(build_network(EncoderSettings(widths=(4, 8)), levels), levels, 1e-3)
        batch = Batch(torch.zeros(4, 1, 8, 8), list("abcd"))
        result = fit(
            loss, lambda start: iter([batch] * 3), TrainingSettings(steps=3, batch_size=4),
            TrainingFolder(Path(sys.argv[1]), {"data": "f"}), grey_levels=256,
        )
        print("steps", result.step, result.finished)
        for name in sys.argv[2:]:
            print(name, importlib.util.find_spec(name))
    """
    absent = ["numpy", "scipy", "sklearn", "monai", "pydicom", "pydantic", "yaml", "PIL"]
    repository = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(script), str(tmp_path / "run"), *absent],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(repository)])},
    )
    expected = ["steps 3 True", *[f"{name} None" for name in absent]]
    assert done.stdout.splitlines() == expected, done.stderr


def normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_cross_entropy_joins_where_the_settings_say(tmp_path: Path) -> None:
    seen: list[float] = []
    loss = cdm_loss()

    def on_step(step: int, total: float) -> None:
        del step, total
        seen.append(loss.ce_weight)

    settings = replace(SETTINGS, steps=4, ce_weight=0.5, ce_from=0.5)
    train(tmp_path, settings, loss=loss, on_step=on_step)
    assert seen == [0.0, 0.0, 0.5, 0.5]


# --- health -----------------------------------------------------------------------------------


def train_for_300_steps(folder: Path, *, normalize: bool) -> NetworkHealth:
    """Train a small encoder on 32x32 textures at the shipped rate; look at it at the end."""
    shipped = load_config(CONFIGS / "zhanglab-64.yaml").training
    levels = NoiseLevels.from_name("log_snr", 100)
    side, steps, batch = 32, 300, 4
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(200, 1, side, side, generator=generator)
    place = torch.fft.fftfreq(side).square()
    smooth = torch.fft.ifft2(torch.fft.fft2(white) / (place[:, None] + place + 2e-3).sqrt()).real
    scans = (0.35 * smooth / smooth.std()).clamp(-1, 1)
    base = CosineGaussianCDM.fit(scans, levels, floor=1e-5)
    torch.manual_seed(0)
    settings = EncoderSettings(widths=(16, 24, 32, 32), features=16, normalize=normalize)
    network = LevelClassifier(build_network(settings, levels), base)
    weights = inverse_error_weights(base.denoising_error(), POWERS[shipped.level_weights])

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, steps):
            rows = torch.randint(200, (batch,), generator=torch.Generator().manual_seed(step))
            yield Batch(scans[rows], [""] * batch)

    result = fit(
        CDMLoss(network, levels, shipped.ce_weight, weights),
        batches,
        replace(shipped, steps=steps, batch_size=batch, warmup_steps=30, ema_decay=0.99),
        TrainingFolder(folder, {}),
        grey_levels=256,
    )
    assert isinstance(result.network, LevelClassifier)
    return network_health(result.network, result.network.parts, levels, scans[:8])


def test_every_scale_lives_after_300_steps_at_the_shipped_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health = train_for_300_steps(tmp_path, normalize=True)
    assert [part.name for part in health.parts] == [f"scale {s}" for s in (1, 2, 3, 4)]
    for part in health.parts:
        assert part.share >= 0.05
        assert min(use.live for use in part.by_level) > 0.9
    assert "dead" not in caplog.text


def test_the_old_network_dies_on_the_same_way_and_training_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health = train_for_300_steps(tmp_path, normalize=False)
    assert {"scale 3", "scale 4"} <= set(health.dead)
    said = [record.getMessage() for record in caplog.records if " is dead " in record.getMessage()]
    # Once of each part, with what to change.
    named = [text[:7] for text in said]
    assert {"scale 3", "scale 4"} <= set(named)
    assert len(set(named)) == len(named)
    assert all("training.learning_rate (0.008)" in text for text in said)
    assert all("network.normalize: true" in text for text in said)


def test_updates_are_measured_where_they_are_recorded(tmp_path: Path) -> None:
    """Adam's first step moves every weight by the learning rate, whatever the gradient."""
    loss = cdm_loss()
    network = loss.network
    assert isinstance(network, HasParts)
    rate = 1e-3
    expected = {}
    for name, part in network.parts.items():
        weights = torch.cat([p.detach().flatten() for p in part.parameters()])
        expected[name] = rate * math.sqrt(len(weights)) / float(weights.norm())
    settings = replace(SETTINGS, steps=1, warmup_steps=0, learning_rate=rate)
    fit(
        loss,
        lambda start: iter([Batch(images(4, 0), [""] * 4)]),
        settings,
        TrainingFolder(tmp_path, {}),
        grey_levels=None,
        observers=Observers(validate=lambda network, step: {}),
    )
    first, last = read_metrics(tmp_path / "metrics.jsonl")
    assert "update_to_weight" not in first
    # Adam divides by its second moment + 1e-8: a gradient near 1e-8 moves less.
    assert last["update_to_weight"] == pytest.approx(expected, rel=0.02)
