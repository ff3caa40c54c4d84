"""A detector in memory: one call judges a scan, an array, a folder of files or a study.

::

    detector = anomaly.load("zhanglab")
    verdict = detector.score("scan.dcm")
    for verdict in detector.score_many(paths): ...

What comes out is what `anomaly score` writes, bit for bit, for the same files in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.images.network_images import ImageReader
from anomaly.data.readers.isolation import Lost, Workers
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.manifest import ManifestRow, pixel_hash, scan_marks
from anomaly.detection.calibration import allowed_rank, combined_p_value
from anomaly.errors import CalibrationError, Reason, UnsupportedScan
from anomaly.scoring.calibrating import calibration_of
from anomaly.scoring.judging import judge
from anomaly.scoring.scorer import Outcome, ReadScan, ScoredScan, Scorer
from anomaly.store.bundle import Bundle, read_bundle, write_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.store.signatures import check_signature
from anomaly.types import Scan, ScanIdentity, StudyVerdict, Verdict

__all__ = ["Detector", "load"]

_NO_SITE_KEY = bytes(32)
"""Pseudonyms of rows that nobody sees."""


def load(
    name: str | PathLike[str],
    *,
    device: str | torch.device = "cpu",
    signer: str | PathLike[str] | None = None,
) -> Detector:
    """Load a detector.

    Parameters
    ----------
    name : str or path
        Name of a shipped bundle, such as ``"zhanglab"``, or the folder of one.
    device : str or torch.device
        Where the network computes.
    signer : path, optional
        Public Ed25519 key, in PEM: refuse a bundle that it has not signed.

    Raises
    ------
    BundleError
        If there is no such bundle, a file of it is damaged, or it is not signed as asked.
    """
    folder = find_bundle(Path(name))
    if signer is not None:
        check_signature(folder, Path(signer))
    return Detector(read_bundle(folder), device=device)


class Detector:
    """A bundle on a device, which judges scans.

    Parameters
    ----------
    bundle : Bundle
    device : str or torch.device
    alpha : float, optional
        Stated false-alarm rate; default: the one that the bundle was calibrated for.

    Raises
    ------
    CalibrationError
        If alpha is no rate, or the calibration has too few scans for it.
    """

    def __init__(
        self, bundle: Bundle, *, device: str | torch.device = "cpu", alpha: float | None = None
    ) -> None:
        self.bundle = bundle
        self.device = torch.device(device)
        known = bundle.calibrated
        usual = bundle.config.alpha if known is None else known.alpha
        self.alpha = usual if alpha is None else alpha
        if alpha is not None:
            allowed_rank(len(bundle.calibration().scores.scores), alpha)

    def at(self, alpha: float) -> Detector:
        """Return the detector at another stated false-alarm rate.

        Raises
        ------
        CalibrationError
            If it is no rate, the bundle is not calibrated, or has too few scans for it.
        """
        return Detector(self.bundle, device=self.device, alpha=alpha)

    def score(
        self,
        scan: str | PathLike[str] | Scan | NDArray[np.generic],
        *,
        value_range: tuple[float, float] | None = None,
    ) -> Verdict:
        """Judge one scan.

        Parameters
        ----------
        scan : path, Scan, or ndarray (H, W)
            A file is decoded in this process: for files of strangers see `score_many`.
        value_range : (float, float), optional
            Of an array, and needed there: the values that display black and white.

        Raises
        ------
        ScanError
            If it cannot be used, or the file has several frames (reason ``"frames"``): those are
            `score_many`'s.
        """
        if isinstance(scan, np.ndarray):
            scan = _scan_of(scan, value_range)
        elif value_range is not None:
            raise UnsupportedScan(
                Reason.RANGE, "value_range is about arrays: a file has its own range."
            )
        if isinstance(scan, Scan):
            self.bundle.config.gate.check(scan)
            # By its pixels: whether training or calibration has seen it.
            frame, pixels = scan.identity.frame, pixel_hash(scan.pixels)
            row = ManifestRow(key="", path="", frame=frame, pixels=pixels)
            outcomes = self._outcomes([(0, self._reader.view(scan, row))])
            (verdict,) = (judge(outcome, self.bundle, self.alpha) for outcome in outcomes)
        else:
            verdict = self._only_frame(Path(scan))
        if verdict.reason:
            raise UnsupportedScan(verdict.reason, verdict.detail)
        return verdict

    def score_many(
        self, paths: Iterable[str | PathLike[str]], *, workers: int = 1
    ) -> Iterator[Verdict]:
        """Judge every frame of every file, in order; one that cannot be used costs itself.

        Files are decoded ahead in processes of their own, with limits of time and memory. A script
        that calls this needs ``if __name__ == "__main__":``.

        Parameters
        ----------
        paths : iterable of path
            Files; also members of zip archives, as ``archive.zip/folder/name``.
        workers : int
            Processes that decode; 0: this one, and nothing is isolated.

        Yields
        ------
        Verdict
            With a `reason` and no score where the scan could not be used.
        """
        with Workers(workers, self.bundle.config.data.seconds) as processes:
            yield from self._verdicts(paths, processes)

    def score_study(
        self, paths: Iterable[str | PathLike[str]], *, workers: int = 1
    ) -> StudyVerdict:
        """Judge the scans of one study, and the study by all of them.

        Scans that took part in training or calibration, or could not be used, do not count.
        """
        scans = tuple(self.score_many(paths, workers=workers))
        counted = [scan.p_value for scan in scans if not scan.seen and scan.p_value is not None]
        p_value = combined_p_value(counted)
        flag = None if p_value is None else p_value <= self.alpha
        return StudyVerdict(self.alpha, p_value, flag, scans)

    def calibrate(
        self, normals: Sequence[str | PathLike[str]], *, alpha: float = 0.05, workers: int = 1
    ) -> Detector:
        """Learn from normal scans of a site what a score is worth there.

        Parameters
        ----------
        normals : sequence of path
            Files of normal scans, every frame of which counts; none that training has seen, and
            none twice. The false-alarm rate is promised for scans like these.
        alpha : float
            False-alarm rate to state.
        workers : int
            As of `score_many`.

        Returns
        -------
        Detector
            Another one; `save` writes it.

        Raises
        ------
        CalibrationError
            If a scan cannot be used, training has seen it, it is there twice, or there are too few
            for `alpha`.
        """
        scored: list[ScoredScan] = []
        marks: set[str] = set()
        with Workers(workers, self.bundle.config.data.seconds) as processes:
            for path, outcome in self._scored(normals, processes):
                if not isinstance(outcome, ScoredScan):
                    raise CalibrationError(
                        f"{path} cannot be used ({outcome[1].reason}: {outcome[1]}): a scan left "
                        "out would bend the false-alarm rate. Leave it out of the list yourself if "
                        "no such scan will be scored"
                    )
                if self.bundle.has_learned(outcome.source.row):
                    raise CalibrationError(
                        f"{path} took part in training: its score is too low to calibrate with"
                    )
                own = scan_marks(outcome.source.row)
                if not marks.isdisjoint(own):
                    raise CalibrationError(
                        f"{path} shows what another scan of the list shows: twice the same scan "
                        "would count as two. Name it once"
                    )
                marks |= own
                scored.append(outcome)
        allowed_rank(len(scored), alpha)
        calibrated = calibration_of(scored, alpha, manifest_hash="", under_nuisance=False)
        bundle = replace(self.bundle, calibrated=calibrated, hash="")
        return Detector(bundle, device=self.device, alpha=alpha)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the detector's bundle, for `load` and for the commands.

        Raises
        ------
        BundleError
            If it cannot be written.
        """
        self.bundle = write_bundle(self.bundle, Path(folder))

    @property
    def _reader(self) -> ImageReader:
        config = self.bundle.config
        return ImageReader(Path("/"), config.intensity, config.preprocessing)

    def _only_frame(self, path: Path) -> Verdict:
        rows = list(self._rows([path], Workers(0)))
        if len(rows) != 1:
            raise UnsupportedScan(
                Reason.FRAMES, f"{path} has {len(rows)} frames: ask `score_many` for all of them."
            )
        ((name, outcome),) = self._scored_rows(rows, Workers(0))
        return judge(outcome, self.bundle, self.alpha, name)

    def _verdicts(
        self, paths: Iterable[str | PathLike[str]], processes: Workers
    ) -> Iterator[Verdict]:
        for path, outcome in self._scored(paths, processes):
            yield judge(outcome, self.bundle, self.alpha, path)

    def _scored(
        self, paths: Iterable[str | PathLike[str]], processes: Workers
    ) -> Iterator[tuple[str, Outcome]]:
        """Outcome of every frame of every file, each with the path as the caller named it."""
        return self._scored_rows(self._rows(paths, processes), processes)

    def _scored_rows(
        self, rows: Iterable[tuple[str, ManifestRow]], processes: Workers
    ) -> Iterator[tuple[str, Outcome]]:
        """Outcome of every row, in order, with the path that comes with it.

        Scans are put before the network in groups of as many as `anomaly score` does; those that
        cannot be used are in none.
        """
        order: deque[tuple[str, Outcome | None]] = deque()  # None: the scorer's next outcome
        size = self.bundle.config.results.shard

        def usable() -> Iterator[tuple[int, ManifestRow]]:
            count = 0
            for path, row in rows:
                if row.status == "ok":
                    order.append((path, None))
                    yield count // size, row
                    count += 1
                else:
                    order.append((path, (row, UnsupportedScan(Reason(row.reason), row.detail))))

        scorer = Scorer(self.bundle, self._reader, self.device, processes)
        for _, outcome in scorer.score(usable()):
            yield from _refused(order)
            yield order.popleft()[0], outcome
        yield from _refused(order)

    def _rows(
        self, paths: Iterable[str | PathLike[str]], processes: Workers
    ) -> Iterator[tuple[str, ManifestRow]]:
        config = self.bundle.config
        inspection = Inspection(Path("/"), config.intensity, _NO_SITE_KEY, gate=config.gate)
        names: deque[str] = deque()

        def places() -> Iterator[str]:
            for path in paths:
                names.append(str(path))
                yield str(Path(path).absolute())[1:]

        for place, rows in processes.map(inspection.rows, places()):
            name = names.popleft()
            if isinstance(rows, Lost):
                error = rows.error()
                rows = [ManifestRow("", place, 0).skipped(error.reason, error.message)]
            yield from ((name, row) for row in rows)

    def _outcomes(self, images: Iterable[tuple[int, ReadScan]]) -> Iterator[Outcome]:
        scorer = Scorer(self.bundle, self._reader, self.device)
        return (outcome for _, outcome in scorer.score_images(images))


def _refused(order: deque[tuple[str, Outcome | None]]) -> Iterator[tuple[str, Outcome]]:
    """Take from the head of a queue what was refused."""
    while order and (outcome := order[0][1]) is not None:
        yield order.popleft()[0], outcome


def _scan_of(pixels: NDArray[np.generic], value_range: tuple[float, float] | None) -> Scan:
    """Make a scan of an array.

    Raises
    ------
    UnsupportedScan
        ``"range"``: its range is not stated, is none, or is left; ``"dimensions"``; ``"empty"``;
        ``"not finite"``.
    """
    if value_range is None or not value_range[0] < value_range[1]:
        raise UnsupportedScan(
            Reason.RANGE,
            f"value_range is {value_range}: expected the values that display black and white, such "
            "as (0, 255); an array does not say.",
        )
    if pixels.ndim != 2:
        raise UnsupportedScan(
            Reason.DIMENSIONS, f"the array has shape {pixels.shape}: expected rows and columns."
        )
    if not pixels.size:
        raise UnsupportedScan(
            Reason.EMPTY, f"the array has shape {pixels.shape}: it holds no pixel."
        )
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise UnsupportedScan(Reason.NOT_FINITE, "the array holds NaN or infinity.")
    low, high = value_range
    if values.min() < low or values.max() > high:
        raise UnsupportedScan(
            Reason.RANGE,
            f"the array's values lie in [{values.min():g}, {values.max():g}]: expected them within "
            f"value_range, {value_range}.",
        )
    whole = np.issubdtype(pixels.dtype, np.integer)
    return Scan(
        pixels=((values - low) / (high - low)).astype(np.float32),
        levels=round(high - low) + 1 if whole else 65_536,
        identity=ScanIdentity("", "", "", ""),
        modality="ARRAY",
        spacing=None,
        spacing_source="none",
        intensity=f"{low:g} displays black, {high:g} white",
    )
