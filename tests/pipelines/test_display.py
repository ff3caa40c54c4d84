"""What people see is the scan: narrow values in a wide container are no black page.

One picture three times: as it is, as 12-bit values in 16 stored bits without a window, and as the
same under a window of the file. Scores agree, and so does what page, overlay and figures show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid

from anomaly.config import load_config
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import read_scan
from anomaly.data.table.manifest import Manifest
from anomaly.grey import GreyCurve, percentile_curve
from anomaly.pipelines.dicom import write_dicom
from anomaly.pipelines.figures import _case, _Source
from anomaly.pipelines.run import RunFolder
from tests.pipelines.road import Road, done

NAMES = ("wide", "narrow", "windowed")


@pytest.fixture(scope="module")
def shown(road: Road, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("display")
    (root / "scans").mkdir()
    flagged = {row.key for row in road.rows if row.flagged}
    paths = {row.key: row.path for row in road.manifest.select(label="abnormal")}
    found = sorted(road.scans / path for key, path in paths.items() if key in flagged)
    source = next(p for p in found if dcmread(p, stop_before_pixels=True).BitsStored == 12)
    for name in NAMES:
        dataset = dcmread(source)
        values = dataset.pixel_array.astype(np.uint16)
        for tag in ("WindowCenter", "WindowWidth", "VOILUTSequence"):
            if tag in dataset:
                delattr(dataset, tag)
        if name != "wide":
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        if name == "windowed":
            dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
        dataset.PixelData = values.tobytes()
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(root / "scans" / f"{name}.dcm")
    run = RunFolder(root / "run")
    done("score", root / "scans", "--bundle", road.run.bundle, "--out", run.path)
    done("report", run.path)
    return run


def keys(run: RunFolder) -> dict[str, str]:
    return {Path(row.path).stem: row.key for row in Manifest.read(run.manifest).select()}


def picture(run: RunFolder, key: str) -> NDArray[np.float64]:
    (path,) = run.report.parent.glob(f"images/*{key}*image*.png")
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), dtype=float) / 255


def test_scores_do_not_depend_on_the_container(shown: RunFolder) -> None:
    rows = {row.key: row for row in shown.results.read()[0]}
    scores = [rows[key].score for key in keys(shown).values()]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-4)


def test_the_page_shows_the_same_picture_and_says_by_which_window(shown: RunFolder) -> None:
    named = keys(shown)
    wide, narrow, windowed = (picture(shown, named[name]) for name in NAMES)
    assert np.abs(wide - narrow).max() <= 2 / 255
    assert 0.2 < narrow.mean() < 0.8
    manifest = Manifest.read(shown.manifest)
    (row,) = [row for row in manifest.select() if row.key == named["windowed"]]
    raw = read_scan(manifest.root / row.path, 0, IntensityPolicy()).pixels
    # c - 0.5 -/+ (w - 1) / 2 is 0 and 4095: the window is the 12 bits
    expected = raw * 65535 / 4095
    if dcmread(manifest.root / row.path).PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - (1 - raw) * 65535 / 4095
    assert np.abs(windowed - expected).max() <= 1 / 255
    page = shown.report.read_text()
    assert "window 2048 / 4096 of the file, LINEAR" in page
    assert "percentiles 0.5 to 99.5 of the image" in page


def test_the_overlay_shows_the_same_picture(shown: RunFolder, tmp_path: Path) -> None:
    config = load_config(shown.config)
    written = write_dicom(shown, config, ("overlay",), tmp_path)
    named, manifest = keys(shown), Manifest.read(shown.manifest)
    assert set(named.values()) == {row.key for row in shown.results.read()[0] if row.flagged}
    found = {}
    for path in written.paths:
        made = dcmread(path)
        (source,) = made.SourceImageSequence
        (row,) = [r for r in manifest.select() if r.instance == source.ReferencedSOPInstanceUID]
        grey = made.pixel_array[: row.rows, : row.columns]
        found[Path(row.path).stem] = grey.astype(float)
    plain = (found["wide"] == found["wide"][..., :1]).all(-1)
    assert plain.mean() > 0.1  # the spread of the score tints the rest
    assert np.abs(found["wide"] - found["narrow"])[plain].max() <= 2


def test_figures_show_the_same_picture(shown: RunFolder) -> None:
    source = _Source(shown, load_config(shown.config), 2, 0)
    named = keys(shown)
    drawn = {
        Path(scan.path).stem: _case(source, row, scan)[1]
        for row, scan in source.pairs
        if row.key in named.values()
    }
    assert np.abs(drawn["wide"] - drawn["narrow"]).max() <= 2 / 255


def test_percentiles_spread_the_middle_of_an_image() -> None:
    pixels = np.linspace(0.2, 0.3, 1001, dtype=np.float32)
    curve = percentile_curve(pixels)
    assert curve(pixels)[5] == pytest.approx(0, abs=1e-4)  # the 0.5th percentile
    assert curve(pixels)[995] == pytest.approx(1, abs=1e-4)
    assert curve(pixels)[500] == pytest.approx(0.5, abs=1e-4)
    spike = np.zeros(1001, dtype=np.float32)
    spike[3] = 0.5  # 99 % are equal: the whole range
    assert percentile_curve(spike)(spike)[3] == 1
    flat = np.full(9, 0.25, dtype=np.float32)
    assert percentile_curve(flat)(flat).tolist() == [0.25] * 9


def test_a_curve_is_exact_at_its_points_and_flat_beyond() -> None:
    curve = GreyCurve(
        np.array([0.25, 0.5], dtype=np.float32), np.array([0, 1], dtype=np.float32), "a test"
    )
    assert curve(np.array([0, 0.25, 0.375, 0.5, 1], dtype=np.float32)).tolist() == [0, 0, 0.5, 1, 1]
