"""figures: a run -> figures for a paper, as PDF and PNG.

If a figure cannot be drawn because labels, maps or calibration are missing, it is left out with a
reason, and the others are still drawn. The scans shown are drawn at random with a seed, never
chosen by hand.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly.config import Config
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.detection.calibration import false_alarm_interval
from anomaly.errors import AnomalyError, ScanError
from anomaly.evaluation.metrics import auroc
from anomaly.evaluation.roc import roc
from anomaly.files import holds_results, make_results_folder, writing
from anomaly.logs import Public
from anomaly.pipelines.run import RunFolder
from anomaly.reporting.plots import charts
from anomaly.scoring.verdicts import OperatingPoint, matching_scores, scan_again
from anomaly.store.bundle import Bundle, Calibrated, read_bundle
from anomaly.store.results import Provenance, ScoreRow
from anomaly.training.checkpoint import read_metrics
from anomaly.types import FIGURE_PNG, JudgedScan

__all__ = ["draw_figures", "make_figures"]

log = logging.getLogger(__name__)

_BAND_STEPS = 100  # of the conformal band: more are not visible in a column of a paper


def make_figures(
    run: RunFolder, config: Config, out: Path | None = None, *, scans: int = 8, seed: int = 0
) -> tuple[list[Path], dict[str, str]]:
    """Write every figure for which the run has the data, as PDF and PNG.

    Parameters
    ----------
    run : RunFolder
    config : Config
    out : Path, optional
        Folder; default ``RUN/figures``. Existing figures of the same names are replaced, or removed
        if they can no longer be drawn.
    scans, seed : int
        See `draw_figures`.

    Returns
    -------
    list of Path, dict of str to str
        The files, and by name of figure the reason why it is left out.

    Raises
    ------
    AnomalyError
        No figure can be drawn, or the folder cannot be written.
    """
    drawn, left_out = draw_figures(run, config, scans=scans, seed=seed)
    if not drawn:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise AnomalyError(f"no figure of {run.path} can be made: {reasons}")
    folder = run.figures if out is None else out
    _make_room(folder, drawn, left_out)
    written: list[Path] = []
    for name, figure in drawn.items():
        with writing(folder / name):
            written += charts.write_figure(figure, folder, name)
    log.info("%d of %d figures made", len(drawn), len(_FIGURES))
    run.record("figures", {"figures": len(drawn), "seed": seed}, [folder])
    return written, left_out


def _make_room(folder: Path, drawn: Collection[str], left_out: Collection[str]) -> None:
    """Prepare a folder for figures; in a folder with other files, those are never changed.

    Figures identify themselves in their metadata, so such a folder is not marked as results.
    """
    if folder.is_dir() and any(folder.iterdir()) and not holds_results(folder):
        for name in drawn:
            there = [path for path in _files_of(folder, name) if path.exists()]
            if there and not _is_drawn(folder / f"{name}.png"):
                raise AnomalyError(
                    f"{there[-1]} is there, and may be yours: name another folder by --out, or "
                    "move it away"
                )
        return
    make_results_folder(folder)
    for name in left_out:
        for old in _files_of(folder, name):
            old.unlink(missing_ok=True)  # it would look like one of the new figures


def _is_drawn(path: Path) -> bool:
    """Whether a picture is a figure drawn by this toolkit."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return all(image.info.get(key) == text for key, text in FIGURE_PNG.items())
    except (OSError, ValueError, SyntaxError):
        return False


def _files_of(folder: Path, figure: str) -> tuple[Path, Path]:
    return folder / f"{figure}.pdf", folder / f"{figure}.png"


def draw_figures(
    run: RunFolder, config: Config, *, scans: int = 8, seed: int = 0
) -> tuple[dict[str, charts.Figure], dict[str, str]]:
    """Draw every figure for which the run has the data.

    Parameters
    ----------
    run : RunFolder
    config : Config
    scans : int >= 2
        Number of scans on the overlay sheet, half of them flagged.
    seed : int
        Seed for drawing the scans and for the bootstrap.

    Returns
    -------
    dict of str to Figure, dict of str to str
        The figures, and the reasons for those left out, both by name.
    """
    drawn, left_out = {}, {}
    source = _Source(run, config, scans, seed)
    for name, draw in _FIGURES.items():
        try:
            drawn[name] = draw(source)
        except AnomalyError as error:
            left_out[name] = str(error)
    return drawn, left_out


@dataclass
class _Source:
    """Data for the figures; each item is read when the first figure needs it."""

    run: RunFolder
    config: Config
    scans: int
    seed: int
    left_out: str = ""

    @cached_property
    def bundle(self) -> Bundle:
        return read_bundle(self.run.bundle)

    @cached_property
    def calibrated(self) -> Calibrated:
        return self.bundle.calibration()

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.run.need(self.run.manifest, "prepare"), self.config.data.root)

    @cached_property
    def results(self) -> tuple[list[ScoreRow], Provenance]:
        return matching_scores(self.run.results, self.manifest, self.bundle)

    @cached_property
    def pairs(self) -> list[tuple[ScoreRow, ManifestRow]]:
        """Scored rows that the bundle has not seen, with their manifest rows."""
        by_key = {row.key: row for row in self.manifest.select()}
        pairs = [(r, by_key[r.key]) for r in self.results[0] if r.status == "scored"]
        if not pairs:
            raise AnomalyError("no scan of the run was scored: see `anomaly status`")
        unseen = [pair for pair in pairs if not pair[0].seen]
        if not unseen:
            raise AnomalyError(
                f"all {len(pairs)} scored scans took part in training or calibration: p-values and "
                "rates keep their promise on held-out scans alone, score some"
            )
        if len(unseen) < len(pairs):
            seen = len(pairs) - len(unseen)
            log.warning("left out: %d scans that took part in training or calibration", seen)
            self.left_out = f"\nLeft out: {seen} scans that the bundle has seen."
        return unseen

    @property
    def labelled(self) -> list[tuple[ScoreRow, ManifestRow]]:
        return [pair for pair in self.pairs if pair[1].label]

    @cached_property
    def point(self) -> OperatingPoint:
        return OperatingPoint.of(self.bundle, self.results[1].alpha)

    def abnormal(self, scan: ManifestRow) -> bool:
        return scan.label != self.config.data.normal


def _overlays(source: _Source) -> charts.Figure:
    point = source.point
    if not point.evidence_threshold < point.evidence_ceiling:
        raise AnomalyError(
            f"the colour scale of the bundle is empty, from {point.evidence_threshold:g} to "
            f"{point.evidence_ceiling:g}: calibrate again on normal scans with some evidence"
        )
    kept = [(r, s) for r, s in source.pairs if r.map_part is not None and not s.burned_in]
    groups = [[pair for pair in kept if bool(pair[0].flagged) is kind] for kind in (True, False)]
    half = source.scans // 2
    generator = np.random.default_rng(source.seed)
    lost: Counter[str] = Counter()
    flagged = _drawn(source, groups[0], half, generator, lost)
    others = _drawn(source, groups[1], source.scans - half, generator, lost)
    if not flagged and not others:
        reasons = f" ({_counted(lost)})" if lost else ""
        raise AnomalyError(
            "no scored scan has both a kept evidence map and an image that can be shown"
            f"{reasons}: score with results.maps=all, and look whether the archive is mounted"
        )
    note = (
        f"{len(flagged)} of {len(groups[0])} flagged and {len(others)} of {len(groups[1])} other "
        f"scans, drawn at random (seed {source.seed}), α = {point.alpha:g}."
    )
    left = len(source.pairs) - len(kept)
    if left:
        note += f"\nNot drawn from: {left} scans without a kept map or with burned-in text."
    for reason, count in lost.most_common():
        log.info("%d scans drawn for the sheet can no longer be read: %s", count, Public(reason))
    if lost:
        note += f"\nDrawn and left out, no longer readable: {_counted(lost)}."
    return charts.overlay_sheet(
        flagged, others, point.evidence_threshold, point.evidence_ceiling, note
    )


def _drawn(
    source: _Source,
    group: list[tuple[ScoreRow, ManifestRow]],
    count: int,
    generator: np.random.Generator,
    lost: Counter[str],
) -> list[tuple[JudgedScan, NDArray[np.float32]]]:
    """Up to `count` random scans of a group; reasons of unreadable ones are counted in `lost`."""
    ordered = sorted(group, key=lambda pair: pair[0].key)
    cases: list[tuple[JudgedScan, NDArray[np.float32]]] = []
    for place in generator.permutation(len(ordered)):
        if len(cases) == count:
            break
        try:
            cases.append(_case(source, *ordered[place]))
        except ScanError as error:
            lost[error.reason] += 1
    return cases


def _case(
    source: _Source, row: ScoreRow, scan: ManifestRow
) -> tuple[JudgedScan, NDArray[np.float32]]:
    """Return the judged scan and its pixels as displayed.

    Raises
    ------
    ScanError
        The image or its evidence map can no longer be read.
    """
    results = source.run.results
    evidence, spread = results.evidence(row), results.spread(row)
    again = scan_again(source.config, scan)
    return source.point.verdict(row, scan, evidence, spread), again.display(again.pixels)


def _counted(lost: Counter[str]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in lost.most_common())


def _roc(source: _Source) -> charts.Figure:
    pairs = source.labelled
    if not pairs:
        raise AnomalyError("no scored scan has a label: set data.labels and prepare again")
    scores = np.array([row.score for row, _ in pairs], dtype=np.float64)
    abnormal = np.array([source.abnormal(scan) for _, scan in pairs])
    patients = [scan.patient for _, scan in pairs]
    area = auroc(scores, abnormal, patients, seed=source.seed)
    curve = roc(scores, abnormal, patients, seed=source.seed)
    flagged = np.array([bool(row.flagged) for row, _ in pairs])
    return charts.roc_plot(
        (curve.false_alarms, curve.sensitivity),
        (curve.rates, curve.low, curve.high),
        str(area),
        (source.point.alpha, float(flagged[~abnormal].mean()), float(flagged[abnormal].mean())),
        f"{int((~abnormal).sum())} normal and {int(abnormal.sum())} abnormal scans.\n"
        f"Bootstrap by patient, band pointwise.{source.left_out}",
    )


def _scores(source: _Source) -> charts.Figure:
    groups: dict[str, list[float]] = {}
    for row, scan in source.pairs:
        assert row.score is not None
        kind = "abnormal" if source.abnormal(scan) else "normal"
        name = f"{kind} scans" if scan.label else "scans without a label"
        groups.setdefault(name, []).append(row.score)
    return charts.score_histogram(
        source.calibrated.scores.scores,
        {name: np.array(scores) for name, scores in sorted(groups.items(), reverse=True)},
        source.point.threshold,
        source.point.alpha,
        f"Calibrated on {source.calibrated}.{source.left_out}",
    )


def _uniformity(source: _Source) -> charts.Figure:
    labelled = bool(source.labelled)
    normals = [(r, s) for r, s in source.pairs if not labelled or not source.abnormal(s)]
    p_values = np.array([row.p_value for row, _ in normals], dtype=np.float64)
    if not len(p_values):
        raise AnomalyError("no held-out normal scan was scored: score some")
    n, m = len(source.calibrated.scores.scores), len(p_values)
    # The band changes at multiples of 1 / (n + 1) and is fixed at both ends.
    ranks = np.unique(np.linspace(1, n, min(n, _BAND_STEPS)).round())
    alphas = np.array([0.0, *ranks / (n + 1), 1.0])
    inside = [false_alarm_interval(n, alpha, 0.95, m) for alpha in alphas[1:-1]]
    low, high = np.array([(0.0, 0.0), *inside, (1.0, 1.0)]).T
    if source.calibrated.under_nuisance:
        low = np.zeros_like(
            low
        )  # calibrated on changed scans, so a low rate on unchanged ones is expected
    note = "" if labelled else "No labels: all scans are drawn, not normal ones alone.\n"
    return charts.uniformity_plot(
        p_values,
        (alphas, low, high),
        "held-out normals" if labelled else "all scans",
        source.point.alpha,
        f"{note}Calibrated on {source.calibrated}.{source.left_out}",
    )


def _training(source: _Source) -> charts.Figure:
    path = source.run.training_metrics
    try:
        records = read_metrics(path)
    except ValueError as error:
        raise AnomalyError(f"{path} is damaged ({error}): expected JSON lines") from error
    if not records:
        raise AnomalyError(
            f"{path} holds no record: the run was not trained here, or not long enough"
        )
    return charts.training_plot(records, "On held-out normal scans of the validation split.")


_FIGURES: dict[str, Callable[[_Source], charts.Figure]] = {
    "overlays": _overlays,
    "roc": _roc,
    "scores": _scores,
    "uniformity": _uniformity,
    "training": _training,
}
