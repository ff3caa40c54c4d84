"""Batches: every image once an epoch, whoever makes the batch; and scans that fail are said."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from anomaly.data.images import network_images as network_images_module
from anomaly.data.images.loaders import Deal, step_batches
from anomaly.data.images.network_images import (
    ImageReader,
    NetworkImage,
    framed_images,
    network_images,
)
from anomaly.data.images.transforms import Augmentation, Preprocessing, network_image
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.synthetic.seeded import changed
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import ManifestRow
from anomaly.errors import ScanError
from tests.data.dicom_samples import write_sample

HOW = Preprocessing(8)
COUNT = 10
FRAMED = torch.rand(COUNT, 1, 16, 16, generator=torch.Generator().manual_seed(0))
KEYS = [f"k{i}" for i in range(COUNT)]
ALL = Augmentation(rotate=5, zoom=0.1, shift=0.05, gamma=0.2)

Batches = list[tuple[torch.Tensor, list[str]]]


def batches(steps: range, augmentation: Augmentation = ALL, **options: Any) -> Batches:
    defaults: dict[str, Any] = {"batch_size": 4, "seed": 0, "total": 1000}
    deal = Deal(**{**defaults, **options})
    return list(step_batches(FRAMED, KEYS, augmentation, HOW, steps, deal))


def names(found: Iterable[tuple[torch.Tensor, list[str]]]) -> list[str]:
    return [key for _, keys in found for key in keys]


def same(left: Batches, right: Batches) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) and k == m for (a, k), (b, m) in zip(left, right, strict=True)
    )


# --- training ---------------------------------------------------------------------------------


def test_images_are_moved_up_to_a_share_of_the_steps() -> None:
    steps, still = range(8), replace(ALL, moved_until=0.5)
    moved = batches(steps, replace(ALL, gamma=0), total=8)
    found = batches(steps, replace(still, gamma=0), total=8)
    plain = batches(steps, Augmentation())
    assert same(found[:4], moved[:4])
    assert same(found[4:], plain[4:])
    # The grey still changes: only the places are the scans' own.
    assert not same(batches(steps, still, total=8)[4:], plain[4:])


def test_every_image_once_an_epoch_in_another_order_each_time() -> None:
    seen = names(batches(range(10)))  # 40 positions: four epochs of ten
    epochs = [seen[i : i + COUNT] for i in range(0, 40, COUNT)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(KEYS)] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert KEYS not in epochs


def test_a_key_names_its_own_image() -> None:
    for images, keys in batches(range(5), Augmentation()):
        for image, key in zip(images, keys, strict=True):
            assert torch.equal(image, network_image(FRAMED[KEYS.index(key)], HOW))


def test_a_step_does_not_depend_on_where_the_run_began() -> None:
    whole = batches(range(6))
    assert same(batches(range(4, 6)), whole[4:])
    assert not torch.equal(whole[0][0], whole[1][0])


def test_an_image_looks_different_at_every_visit() -> None:
    visits: dict[str, list[torch.Tensor]] = {}
    for images, keys in batches(range(25)):  # ten epochs
        for image, key in zip(images, keys, strict=True):
            visits.setdefault(key, []).append(image)
    for seen in visits.values():
        assert len(seen) == 10
        assert len(torch.stack(seen).flatten(1).unique(dim=0)) == 10


def test_another_seed_gives_another_order_and_other_images() -> None:
    first, other = batches(range(3)), batches(range(3), seed=1)
    assert names(first) != names(other)
    assert same(first, batches(range(3)))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_make_the_batch_of_one(world: int) -> None:
    whole = batches(range(3))
    shares = [batches(range(3), rank=rank, world=world) for rank in range(world)]
    joined = [
        (torch.cat([share[s][0] for share in shares]), names(share[s] for share in shares))
        for s in range(3)
    ]
    assert same(joined, whole)


# Python 3.12 warns of any fork from a process with threads, which PyTorch's loader does by default.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_helpers_change_nothing() -> None:
    assert same(batches(range(4), workers=2), batches(range(4)))


def test_batches_are_plain_tensors_on_the_grid() -> None:
    ((images, _),) = batches(range(1))
    assert type(images) is torch.Tensor
    assert (images.shape, images.dtype) == ((4, 1, 8, 8), torch.float32)
    steps = (images + 1) * 255 / 2
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


def test_a_batch_may_be_larger_than_the_data() -> None:
    ((_, keys),) = batches(range(1), batch_size=25)
    assert sorted(keys[:COUNT]) == sorted(keys[COUNT : 2 * COUNT]) == sorted(KEYS)


# --- reading ----------------------------------------------------------------------------------


def folder(root: Path, count: int = 4, rows: int = 20) -> tuple[ManifestRow, ...]:
    """Write PNG files of different sizes and list them."""
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 256, (rows + i, rows + 11)).astype(np.uint8)
        Image.fromarray(values).save(root / f"{i}.png")
    return rows_of(root)


def rows_of(root: Path) -> tuple[ManifestRow, ...]:
    manifest = build_manifest(Inspection(root, IntensityPolicy(), b"k" * 32), PathNames())
    return manifest.rows


def reader(root: Path) -> ImageReader:
    return ImageReader(root, IntensityPolicy(), HOW)


def read(root: Path, rows: Iterable[ManifestRow]) -> list[Any]:
    return [reader(root)(row) for row in rows]


def test_scans_come_in_order_with_their_way_back(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    found = read(tmp_path, reversed(rows))
    assert [item.row for item in found] == list(reversed(rows))
    for item in found:
        assert isinstance(item, NetworkImage)
        assert item.frame.source == (item.row.rows, item.row.columns)
        assert item.image.shape == (1, 8, 8)


def test_a_scan_that_fails_is_said_in_its_place(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").unlink()
    missing_frame = replace(rows[3], frame=5)
    found = read(tmp_path, [*rows, missing_frame])
    assert [isinstance(item, NetworkImage) for item in found] == [True, False, False, True, False]
    failed = [item for item in found if isinstance(item, ScanError)]
    assert [error.reason for error in failed] == ["changed", "unreadable", "no such frame"]


def test_a_flat_scan_fails_by_name_and_alone(tmp_path: Path) -> None:
    flat = np.zeros((40, 40), dtype=np.uint8)
    flat[3, 3] = 255  # varies, so it can be read; but there is nothing to stretch
    Image.fromarray(flat).save(tmp_path / "a.png")
    rows = folder(tmp_path, 1)
    found = read(tmp_path, rows)
    assert isinstance(found[0], NetworkImage)
    assert found[1].reason == "constant"


def test_a_scan_of_nothing_but_borders_fails_by_name_and_alone(tmp_path: Path) -> None:
    black = np.zeros((48, 48), dtype=np.uint8)
    black[:, 0] = 255  # within the rim; all else is an empty border
    Image.fromarray(black).save(tmp_path / "a.png")
    rows = folder(tmp_path, 1)
    found = read(tmp_path, rows)
    assert isinstance(found[0], NetworkImage)
    assert found[1].reason == "blank"


def test_training_and_scoring_see_the_same_image(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    framed = framed_images(reader(tmp_path), rows, 1)
    assert framed.shape == (4, 1, 16, 16)
    trained = network_images(framed, HOW)
    scored = torch.from_numpy(np.stack([item.image for item in read(tmp_path, rows)]))
    assert torch.equal(trained, scored)


def test_a_change_meets_the_pixels_of_the_source_before_they_are_framed(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    met: list[tuple[ManifestRow, tuple[int, ...]]] = []

    def upside_down(pixels: NDArray[np.float32], row: ManifestRow) -> NDArray[np.float32]:
        met.append((row, pixels.shape))
        assert 0 <= pixels.min() < pixels.max() <= 1
        return np.ascontiguousarray(pixels[::-1])

    changed = framed_images(ImageReader(tmp_path, IntensityPolicy(), HOW, upside_down), rows, 1)
    # Every row in order, and its scan at its own size: 20, 21, 22, 23 rows of 31 pixels.
    assert met == [(row, (20 + i, 31)) for i, row in enumerate(rows)]
    for row in rows:
        with Image.open(tmp_path / row.path) as image:
            turned = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        turned.save(tmp_path / row.path)
    assert torch.equal(changed, framed_images(reader(tmp_path), rows_of(tmp_path), 1))


def test_a_change_that_changes_nothing_leaves_the_frame(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    same = framed_images(
        ImageReader(tmp_path, IntensityPolicy(), HOW, lambda pixels, row: pixels), rows, 1
    )
    assert torch.equal(same, framed_images(reader(tmp_path), rows, 1))


def test_inverted_storage_is_the_same_image(tmp_path: Path) -> None:
    """MONOCHROME1 stores white as 0: 4095 - v shows what v shows under MONOCHROME2."""
    values = np.random.default_rng(0).integers(0, 4096, (33, 24))
    write_sample(tmp_path / "1.dcm", values, photometric="MONOCHROME2")
    write_sample(tmp_path / "2.dcm", 4095 - values, photometric="MONOCHROME1")
    first, second = read(tmp_path, rows_of(tmp_path))
    # 1 - x rounds differently from x by one float32 step, which may cross a rounding boundary
    torch.testing.assert_close(first.image, second.image, atol=1e-6, rtol=0)


def test_several_processes_read_what_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_images_module, "SCANS_WORTH_A_PROCESS", 1)
    rows = folder(tmp_path, 6, 32)
    # What fitting sends to the processes: a change that is a function of the row.
    change = partial(changed, "nuisance", 0, 0)
    before = (list(warnings.filters), warnings.showwarning)
    one = framed_images(ImageReader(tmp_path, IntensityPolicy(), HOW, change), rows, 1)
    two = framed_images(ImageReader(tmp_path, IntensityPolicy(), HOW, change), rows, 2)
    assert torch.equal(one, two)
    assert not torch.equal(one, framed_images(reader(tmp_path), rows, 1))
    # Decoders are silenced while they run; threads would leave this process's warnings changed.
    assert (list(warnings.filters), warnings.showwarning) == before


def test_a_training_scan_that_vanished_is_a_scan_error(tmp_path: Path) -> None:
    rows = folder(tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(ScanError) as caught:
        framed_images(reader(tmp_path), rows, 1)
    assert caught.value.reason == "unreadable"
