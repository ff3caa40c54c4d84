"""The pictures of a report, beside the page or inside it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly.reporting.plots.figures import overlay_rgba
from anomaly.types import Region
from tests.reporting.html_pages import Render, make_case, make_data


def decode(png: bytes) -> NDArray[np.uint8]:
    for chunk in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"):
        assert chunk not in png
    return np.asarray(Image.open(io.BytesIO(png)))


def embedded(uri: str) -> bytes:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(body)


@pytest.mark.parametrize("single_file", [False, True])
def test_pictures_are_the_pixels(render: Render, tmp_path: Path, single_file: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30)).astype(np.float32) / np.float32(255)
    evidence = rng.random((20, 30), dtype=np.float32) * 15
    region = Region(row=4.0, column=9.0, area=40, area_mm2=None, peak=14.0)

    case = make_case("a", 0.01, 2.0, image, evidence, (region,))
    case = dataclasses.replace(case, expected=1 - image, look_alike=image**2)
    page = render(make_data(case), single_file=single_file)

    figure = page.cases[0]["figure"]
    assert (figure["height"], figure["width"]) == (20, 30)
    names = ("image", "overlay", "expected", "look_alike")
    if single_file:
        assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
        shown = {name: decode(embedded(page.picture(figure[name]))) for name in names}
    else:
        assert figure["image"] == "images/a-image.png"
        assert figure["look_alike"] == "images/a-look-alike.png"
        shown = {name: decode((tmp_path / figure[name]).read_bytes()) for name in names}
    assert (shown["image"] == np.rint(image * 255)).all()
    assert (shown["expected"] == np.rint((1 - image) * 255)).all()
    assert (shown["look_alike"] == np.rint(image**2 * 255)).all()
    assert (shown["overlay"] == overlay_rgba(evidence, 3.0, 12.0)).all()
    assert figure["contour"].startswith("M")
    assert page.cases[0]["regions"] == [["4, 9", "40", "unknown", "unknown", "14"]]


@pytest.mark.parametrize("single_file", [False, True])
def test_an_earlier_report_leaves_no_picture(
    render: Render, tmp_path: Path, single_file: bool
) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    old = make_case("old", 0.01, 2.0, image, image)
    render(make_data(dataclasses.replace(old, expected=image, look_alike=image)))
    assert {path.name for path in tmp_path.rglob("*.png")} == {
        f"old-{what}.png" for what in ("image", "evidence", "expected", "look-alike")
    }
    (tmp_path / "images" / "mine.png").write_bytes(b"")

    render(make_data(make_case("new", 0.01, 2.0)), single_file=single_file)

    assert {path.name for path in tmp_path.rglob("*.png")} == {"mine.png"}


@pytest.mark.parametrize("key", ["../up", "a/b", "x" * 10_000, "\u202eabc", "A", "nul:", ""])
def test_a_key_that_is_no_pseudonym_names_no_file(render: Render, tmp_path: Path, key: str) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    page = render(make_data(make_case(key, 0.01, 2.0, image)))

    (file,) = tmp_path.rglob("*.png")
    assert re.fullmatch(r"[0-9a-f]{32}-image\.png", file.name)
    assert page.cases[0]["figure"]["image"] == f"images/{file.name}"


def test_large_pictures_are_shrunk_and_keep_a_single_pixel_of_evidence(render: Render) -> None:
    evidence = np.zeros((1536, 1024), dtype=np.float32)
    evidence[300, 600] = 12.0

    case = make_case("a", 0.01, 2.0, np.ones_like(evidence), evidence)
    page = render(make_data(case), single_file=True)

    figure = page.cases[0]["figure"]
    assert decode(embedded(page.picture(figure["image"]))).shape == (512, 341)
    overlay = decode(embedded(page.picture(figure["overlay"])))
    assert np.argwhere(overlay[..., 3]).tolist() == [[100, 200]]  # a third of (300, 600)
    assert overlay[100, 200, 3] == 255


def test_pictures_inside_the_page_stand_after_the_script_and_outside_of_the_rows(
    render: Render,
) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    # given in another order than the page's
    cases = [make_case("late", 0.5, 0.5, image), make_case("first", 0.01, 2.0, image, image)]
    page = render(make_data(*cases), single_file=True)

    blocks = page.attributes("script")
    assert [block.get("type") for block in blocks[:2]] == ["application/json", None]
    assert [block["id"] for block in blocks[2:]] == ["picture-0", "picture-1", "picture-2"]
    assert {block["type"] for block in blocks[2:]} == {"text/plain"}
    assert "data:image" not in page.scripts[0]
    first, late = (case["figure"] for case in page.cases)
    assert (first["image"], first["overlay"]) == ("#picture-0", "#picture-1")
    assert late["image"] == "#picture-2"


def test_no_image_means_no_map(render: Render, tmp_path: Path) -> None:
    evidence = np.full((8, 8), 9.0, dtype=np.float32)

    region = Region(row=4.0, column=4.0, area=64, area_mm2=None, peak=9.0)
    case = make_case("a", 0.01, 2.0, None, evidence, (region,), note="Burned-in text.")

    page = render(make_data(dataclasses.replace(case, look_alike=evidence, expected=evidence)))

    assert page.cases[0]["figure"] is None
    assert page.cases[0]["note"] == "Burned-in text."
    assert page.source.count("data:image/png") == 1  # the colour bar
    assert not list(tmp_path.rglob("*.png"))
