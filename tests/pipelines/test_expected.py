"""The expected scan: the source but for the regions, and the source itself where there are none."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal
from road import Road

from anomaly.bundle import read_bundle
from anomaly.data.readers import read_scan
from anomaly.data.transforms import grey_range, stretch
from pipelines.expected import expected_scan


def test_only_the_neighbourhood_of_regions_changes(road: Road) -> None:
    bundle = read_bundle(road.run.bundle)
    row = next(row for row in road.manifest.select(label="abnormal"))
    scan = read_scan(road.scans / row.path, row.frame, bundle.config.intensity)
    evidence = np.zeros(scan.pixels.shape, dtype=np.float32)
    assert expected_scan(bundle, scan, evidence, 2.0) is None
    evidence[40:50, 30:40] = 3.0
    expected = expected_scan(bundle, scan, evidence, 2.0)
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
    assert_array_equal(expected, expected_scan(bundle, scan, evidence, 2.0))


def test_the_grey_range_is_the_one_of_the_stretch() -> None:
    pixels = np.linspace(0.2, 0.7, 1001, dtype=np.float32).reshape(7, 143)
    low, high = grey_range(pixels, "percentile")
    assert_array_equal((low, high), np.percentile(pixels, (0.5, 99.5)))
    unit = np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32)
    assert_array_equal(stretch(pixels, "percentile"), unit)
    assert grey_range(pixels, "full") == (0.0, 1.0)
