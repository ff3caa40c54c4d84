"""`anomaly figures`: what a run holds is drawn, what it lacks is said, the same every time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from anomaly.config import load_config
from anomaly.files import make_results_folder
from anomaly.pipelines.figures import draw_figures
from anomaly.pipelines.run import RunFolder
from anomaly.store.results import ScoreRow
from tests.pipelines.road import Road, copy, damage_map, done, refused

NAMES = {"overlays", "roc", "scores", "uniformity", "training"}
FILES = {f"{name}.{ending}" for name in NAMES for ending in ("pdf", "png")}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def scored(run: RunFolder) -> list[ScoreRow]:
    return [row for row in run.results.read()[0] if row.status == "scored"]


def draw(
    run: RunFolder, *, overrides: tuple[str, ...] = (), scans: int = 8, seed: int = 0
) -> tuple[dict[str, Figure], dict[str, str]]:
    return draw_figures(run, load_config(run.config, list(overrides)), scans=scans, seed=seed)


def note(figure: Figure) -> str:
    return figure.get_supxlabel()


def keys(sheet: Figure) -> tuple[set[str], set[str]]:
    """Keys of the flagged and of the other scans of a sheet."""
    titles = [axes.get_title(loc="left").split("\n") for axes in sheet.findobj(Axes)]
    said = [(title[0], title[1]) for title in titles if len(title) == 2]
    flagged = {key for key, meaning in said if meaning.startswith("flagged")}
    return flagged, {key for key, _ in said} - flagged


def p_values(uniformity: Figure) -> tuple[str, list[float]]:
    """What the line of the uniformity plot is of, and where it rises."""
    line = uniformity.axes[0].lines[1]
    return str(line.get_label()), np.asarray(line.get_xdata())[1:-1].tolist()


@pytest.fixture(scope="module")
def unlabelled(road: Road, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run that scored a folder of scans without labels, some of which trained it."""
    root = tmp_path_factory.mktemp("unlabelled")
    shutil.copytree(road.scans / "normal", root / "scans")
    done("score", root / "scans", "--bundle", road.run.bundle, "--out", root / "run")
    return RunFolder(root / "run")


def test_a_run_becomes_figures_twice_the_same(run: RunFolder) -> None:
    said = done("figures", run.path, "--scans", 4)
    assert files(run.path / "figures") == FILES
    for name in FILES:
        assert str(run.path / "figures" / name) in said.out
    assert "left out" not in said.out
    assert said.out.endswith("Research use only. Not a diagnosis.\n")
    done("figures", run.path, "--scans", 4, "--out", run.path / "again")
    for name in FILES:
        again = (run.path / "again" / name).read_bytes()
        assert (run.path / "figures" / name).read_bytes() == again, name
    with Image.open(run.path / "figures" / "overlays.png") as sheet:
        assert sheet.width == pytest.approx(7.09 * 300, abs=1)  # two columns of 180 mm


def test_every_figure_of_a_run_says_what_it_is_for(road: Road) -> None:
    drawn, left_out = draw(road.run)
    assert set(drawn) == NAMES
    assert left_out == {}
    for figure in drawn.values():
        assert note(figure).endswith("Research use only. Not a diagnosis.")


def test_chance_alone_chooses_the_scans(road: Road) -> None:
    flagged = {row.key for row in road.rows if row.flagged}
    others = {row.key for row in road.rows if row.status == "scored" and not row.flagged}
    chosen = []
    for seed in (0, 0, 1, 2, 3):
        sheet = draw(road.run, scans=4, seed=seed)[0]["overlays"]
        left, right = keys(sheet)
        assert len(left) == min(2, len(flagged))
        assert len(right) == 2
        assert left <= flagged
        assert right <= others
        of = f"{len(left)} of {len(flagged)} flagged and 2 of {len(others)} other scans"
        assert note(sheet).startswith(of)
        assert f"(seed {seed})" in note(sheet)
        chosen.append(left | right)
    assert chosen[0] == chosen[1]
    assert any(drawn != chosen[0] for drawn in chosen)


def test_without_labels_there_is_no_roc_and_all_scans_are_drawn(
    unlabelled: RunFolder, tmp_path: Path
) -> None:
    make_results_folder(tmp_path)
    (tmp_path / "roc.pdf").write_text("of an earlier run")
    said = done("figures", unlabelled.path, "--out", tmp_path)
    assert "roc left out: no scored scan has a label" in said.out
    assert "training left out: " in said.out
    kept = {name for name in FILES if not name.startswith(("roc", "training"))}
    assert files(tmp_path) == kept  # nor one that an earlier run has left
    uniformity = draw(unlabelled)[0]["uniformity"]
    label, found = p_values(uniformity)
    rows = unlabelled.results.read()[0]
    assert label == f"all scans (m = {len(found)})"
    assert "No labels: all scans are drawn" in note(uniformity)
    # The bundle has seen some of these scans; their p-values promise nothing.
    assert f"Left out: {len(rows) - len(found)} scans that the bundle has" in note(uniformity)
    assert 0 < len(found) < len(rows)


def test_the_uniformity_plot_is_of_held_out_normals(road: Road) -> None:
    label, found = p_values(draw(road.run)[0]["uniformity"])
    labels = {row.key: row.label for row in road.manifest.rows}
    wanted = [row.p_value for row in road.rows if row.p_value and labels[row.key] == "normal"]
    assert found == sorted(wanted)
    assert label == f"held-out normals (m = {len(wanted)})"


def test_an_uncalibrated_run_still_has_its_training_curves(road: Road) -> None:
    drawn, left_out = draw(road.trained)
    assert set(drawn) == {"training"}
    assert set(left_out) == NAMES - {"training"}
    assert all("run `anomaly" in reason for reason in left_out.values())


def test_what_is_damaged_costs_one_figure(run: RunFolder) -> None:
    with run.training_metrics.open("a") as file:
        file.write("{damaged\n")
    drawn, left_out = draw(run)
    assert set(drawn) == NAMES - {"training"}
    assert "is damaged" in left_out["training"]


def test_scans_that_are_gone_are_left_out(road: Road, tmp_path: Path) -> None:
    drawn, left_out = draw(road.run, overrides=(f"data.root={tmp_path}",))
    assert set(drawn) == NAMES - {"overlays"}
    assert "archive is mounted" in left_out["overlays"]


def test_scans_without_a_map_are_not_drawn_from(road: Road, tmp_path: Path) -> None:
    run = copy(road.run, tmp_path / "run")
    done("score", run.path, "--set", "results.maps=flagged")
    sheet = draw(run)[0]["overlays"]
    rows = [row for row in run.results.read()[0] if row.status == "scored"]
    bare = sum(row.map_part is None for row in rows)
    assert bare > 0
    assert f"Not drawn from: {bare} scans without a kept map" in note(sheet)
    assert keys(sheet)[0] <= {row.key for row in rows if row.flagged}


def test_the_sheet_leaves_out_a_damaged_map_and_says_so(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    key = next(row.key for row in scored(run) if row.flagged)
    damage_map(run.results.maps(0), key)
    everything = 2 * len(scored(run))
    with caplog.at_level("INFO"):
        drawn, left_out = draw(run, scans=everything)
    assert left_out == {}
    flagged, others = keys(drawn["overlays"])
    assert key not in flagged
    assert len(flagged | others) == len(scored(run)) - 1
    assert "Drawn and left out, no longer readable: 1 × map damaged." in note(drawn["overlays"])
    assert "1 scans drawn for the sheet can no longer be read: map damaged" in caplog.text


def test_without_a_readable_map_the_sheet_alone_is_left_out(run: RunFolder) -> None:
    run.results.maps(0).write_bytes(b"")
    drawn, left_out = draw(run)
    assert set(drawn) == {"roc", "scores", "uniformity", "training"}
    assert f"({len(scored(run))} × map damaged)" in left_out["overlays"]


def test_nothing_to_draw_is_an_error(road: Road) -> None:
    error = refused("figures", road.prepared.path)
    assert "no figure of" in error
    assert all(f"{name}: " in error for name in NAMES)
    assert not (road.prepared.path / "figures").exists()
