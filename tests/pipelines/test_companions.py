"""What is shown beside a scan: the scan as expected, and a normal one like it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.testing import assert_array_equal

from anomaly.config import load_config
from anomaly.data.images.transforms import Frame, frame_scan, grey_range, network_image, stretch
from anomaly.data.readers.registry import read_scan
from anomaly.detection.look_alikes import LookAlikes
from anomaly.pipelines.train import look_alikes
from anomaly.scoring.companions import Companions
from anomaly.store.bundle import read_bundle
from tests.pipelines.road import Road


def test_only_the_neighbourhood_of_regions_changes(road: Road) -> None:
    bundle = read_bundle(road.run.bundle)
    row = next(row for row in road.manifest.select(label="abnormal"))
    scan = read_scan(road.scans / row.path, row.frame, bundle.config.intensity)
    evidence = np.zeros(scan.pixels.shape, dtype=np.float32)
    companions = Companions(bundle, 2.0)
    assert companions.expected(scan, evidence) is None
    evidence[40:50, 30:40] = 3.0
    expected = companions.expected(scan, evidence)
    assert expected is not None
    assert expected.shape == scan.pixels.shape
    assert 0 <= expected.min() < expected.max() <= 1
    changed = np.argwhere(expected != scan.pixels)
    assert len(changed) > 0
    # 96 rows on 16 network pixels: six source pixels each. Two of dilation, one of the rim, and
    # half a one of interpolation on either side.
    assert changed.min(0)[0] >= 40 - 6 * 4
    assert changed.max(0)[0] <= 50 + 6 * 4
    far = np.ones(scan.pixels.shape, dtype=bool)
    far[10:80, :] = False
    assert_array_equal(expected[far], scan.pixels[far])
    assert_array_equal(expected, companions.expected(scan, evidence))


def test_the_look_alike_is_a_training_image_on_the_pixels_of_the_scan(road: Road) -> None:
    bundle = read_bundle(road.run.bundle)
    assert bundle.look_alikes is not None
    assert bundle.look_alikes.images.shape == (5, 16, 16)
    row = next(row for row in road.manifest.select(label="abnormal"))
    scan = read_scan(road.scans / row.path, row.frame, bundle.config.intensity)
    evidence = np.zeros(scan.pixels.shape, dtype=np.float32)
    shown = Companions(bundle, 2.0).look_alike(scan, evidence)
    assert shown is not None
    how = bundle.config.preprocessing
    frame = Frame(scan.pixels.shape, how.size, how.geometry)
    choices = [
        frame.to_source(image.astype(np.float32) / 255) for image in bundle.look_alikes.images
    ]
    assert sum(bool((shown == choice).all()) for choice in choices) == 1
    assert Companions(replace(bundle, look_alikes=None), 2.0).look_alike(scan, evidence) is None


def test_a_training_image_is_its_own_look_alike(road: Road) -> None:
    bundle = read_bundle(road.run.bundle)
    assert bundle.look_alikes is not None
    companions = Companions(bundle, 2.0)
    for row in road.manifest.select(split="train"):
        scan = read_scan(road.scans / row.path, row.frame, bundle.config.intensity)
        framed, frame = frame_scan(scan, bundle.config.preprocessing)
        own = network_image(framed, bundle.config.preprocessing)
        kept = (LookAlikes.of(own[None].numpy()).images == bundle.look_alikes.images).all((1, 2))
        if not kept.any():
            continue
        shown = companions.look_alike(scan, np.zeros(scan.pixels.shape, dtype=np.float32))
        expected = frame.to_source(bundle.look_alikes.images[kept][0].astype(np.float32) / 255)
        assert_array_equal(shown, expected)
        return
    raise AssertionError("none of the training scans is among the look-alikes")


def test_the_grey_range_is_the_one_of_the_stretch() -> None:
    pixels = np.linspace(0.2, 0.7, 1001, dtype=np.float32).reshape(7, 143)
    low, high = grey_range(pixels, "percentile")
    assert_array_equal((low, high), np.percentile(pixels, (0.5, 99.5)))
    unit = np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32)
    assert_array_equal(stretch(pixels, "percentile"), unit)
    assert grey_range(pixels, "full") == (0.0, 1.0)


def test_scans_with_burned_in_text_go_into_no_bundle(road: Road) -> None:
    rows = road.manifest.select(split="train")
    images = torch.rand(len(rows), 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    burned = [replace(row, burned_in=index % 2 == 0) for index, row in enumerate(rows)]
    config = replace(load_config(road.config), look_alikes=len(rows))
    shown = look_alikes(burned, images, config)
    assert shown is not None
    assert_array_equal(shown.images, LookAlikes.of(images[1::2].numpy()).images)
    assert look_alikes([replace(row, burned_in=True) for row in rows], images, config) is None
    assert look_alikes(rows, images, replace(config, look_alikes=0)) is None
