"""A detector in memory: one call scores a scan, an array, a list of files or a study.

::

    detector = anomaly.load("zhanglab")
    verdict = detector.score("scan.dcm")
    for verdict in detector.score_many(paths): ...

The results equal those of `anomaly score` bit for bit, for the same files in the same order.
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
from anomaly.scoring.adapting import adapted_bundle, halves
from anomaly.scoring.calibrating import calibration_of
from anomaly.scoring.judging import judge
from anomaly.scoring.scorer import Outcome, ReadScan, ScoredScan, Scorer
from anomaly.store.bundle import Bundle, read_bundle, write_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.store.onnx_model import read_model
from anomaly.store.signatures import check_signature
from anomaly.types import Scan, ScanIdentity, StudyVerdict, Verdict

__all__ = ["Detector", "load"]

_NO_SITE_KEY = bytes(32)
"""Key for the pseudonyms of rows that are never shown or stored."""


def load(
    name: str | PathLike[str],
    *,
    device: str | torch.device = "cpu",
    signer: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
) -> Detector:
    """Load a detector.

    Parameters
    ----------
    name : str or path
        Name of a shipped bundle, such as ``"zhanglab"``, or the folder of a bundle.
    device : str or torch.device
        Device of the network.
    signer : path, optional
        Public Ed25519 key, PEM. If given, the bundle must have a signature by this key.
    model : path, optional
        File of `anomaly export-model` of this bundle, which runs in place of PyTorch.

    Raises
    ------
    BundleError
        If there is no such bundle, one of its files is damaged, or the signature by `signer` is
        missing or invalid, or `model` is of another network.
    """
    folder = find_bundle(Path(name))
    if signer is not None:
        check_signature(folder, Path(signer))
    bundle = read_bundle(folder)
    if model is not None:
        passes = read_model(Path(model), bundle, torch.device(device))
        bundle = replace(bundle, passes=passes)
    return Detector(bundle, device=device)


class Detector:
    """A bundle on a device, which scores scans and judges the scores.

    Parameters
    ----------
    bundle : Bundle
    device : str or torch.device
    alpha : float, optional
        Stated false-alarm rate; default: the rate of the bundle's calibration.

    Raises
    ------
    CalibrationError
        If alpha is not within (0, 1), or the calibration has too few scans for it.
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
            If alpha is not within (0, 1), the bundle is not calibrated, or its calibration has too
            few scans for alpha.
        """
        return Detector(self.bundle, device=self.device, alpha=alpha)

    def score(
        self,
        scan: str | PathLike[str] | Scan | NDArray[np.generic],
        *,
        value_range: tuple[float, float] | None = None,
    ) -> Verdict:
        """Return the verdict on one scan.

        Parameters
        ----------
        scan : path, Scan, or ndarray (H, W)
            A file is decoded in this process; use `score_many` for untrusted files.
        value_range : (float, float), optional
            Values that display black and white. Required for an array, and allowed only there.

        Raises
        ------
        ScanError
            If the scan cannot be used, or the file has several frames (reason ``"frames"``); use
            `score_many` for those.
        """
        if isinstance(scan, np.ndarray):
            scan = _scan_of(scan, value_range)
        elif value_range is not None:
            raise UnsupportedScan(
                Reason.RANGE, "value_range is about arrays: a file has its own range."
            )
        if isinstance(scan, Scan):
            self.bundle.config.gate.check(scan)
            # The pixel hash tells whether the scan was used in training or calibration.
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
        """Yield a verdict on every frame of every file, in order.

        A scan that cannot be used does not affect the others. Files are decoded ahead of time in
        separate processes, with limits on time and memory. A script that calls this method needs
        ``if __name__ == "__main__":``.

        Parameters
        ----------
        paths : iterable of path
            Files, or members of zip files as ``archive.zip/folder/name``.
        workers : int
            Number of decoder processes; 0 decodes in this process, without isolation.

        Yields
        ------
        Verdict
            With a `reason` and no score if the scan could not be used.
        """
        with Workers(workers, self.bundle.config.data.seconds) as processes:
            yield from self._verdicts(paths, processes)

    def score_study(
        self, paths: Iterable[str | PathLike[str]], *, workers: int = 1
    ) -> StudyVerdict:
        """Return the verdict on a study, with the verdicts on its scans.

        Scans that were used in training or calibration, or could not be used, do not count.
        """
        scans = tuple(self.score_many(paths, workers=workers))
        counted = [scan.p_value for scan in scans if not scan.seen and scan.p_value is not None]
        p_value = combined_p_value(counted)
        flag = None if p_value is None else p_value <= self.alpha
        return StudyVerdict(self.alpha, p_value, flag, scans)

    def calibrate(
        self,
        normals: Sequence[str | PathLike[str]],
        *,
        alpha: float = 0.05,
        adapt: bool = False,
        workers: int = 1,
    ) -> Detector:
        """Return a detector calibrated on normal scans of a site.

        Parameters
        ----------
        normals : sequence of path
            Files of normal scans; every frame counts. No scan may have been used in training or
            occur twice. The stated false-alarm rate holds for scans like these.
        alpha : float
            Stated false-alarm rate.
        adapt : bool
            First adapt the detector to one half of the scans, by patient, and calibrate on the
            other (`anomaly.detection.adaptation`). At least 50 scans.
        workers : int
            As in `score_many`.

        Returns
        -------
        Detector
            A new detector; `save` writes it.

        Raises
        ------
        CalibrationError
            If a scan cannot be used, was used in training or occurs twice, or there are too few
            scans for `alpha`.
        """
        if adapt:
            return self._adapted(normals, alpha, workers)
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

    def _adapted(
        self, normals: Sequence[str | PathLike[str]], alpha: float, workers: int
    ) -> Detector:
        """Adapt to one half of the scans and calibrate on the other."""
        if self.bundle.adapted is not None:
            raise CalibrationError(
                f"the detector is adapted to {self.bundle.adapted.scans} scans already: adapt the "
                "one that it came from"
            )
        # Scored once before, so that a scan that cannot be used is named and refused as ever.
        self.calibrate(normals, alpha=alpha, workers=workers)
        with Workers(workers, self.bundle.config.data.seconds) as processes:
            named = list(self._rows(normals, processes))
        first, second = halves([row for _, row in named], self.bundle.config.detector.seed)
        bundle = adapted_bundle(self.bundle, self._reader, first, self.device, manifest_hash="")
        chosen = {id(row) for row in second}
        rest = list(dict.fromkeys(name for name, row in named if id(row) in chosen))
        adapted = Detector(bundle, device=self.device)
        return adapted.calibrate(rest, alpha=alpha, workers=workers)

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
        """Outcome of every frame of every file, each with the path given by the caller."""
        return self._scored_rows(self._rows(paths, processes), processes)

    def _scored_rows(
        self, rows: Iterable[tuple[str, ManifestRow]], processes: Workers
    ) -> Iterator[tuple[str, Outcome]]:
        """Outcome of every row, in order, with its path.

        Scans are scored in groups of the same size as in `anomaly score`; scans that cannot be used
        are in no group.
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
    """Remove and yield the refused scans at the head of a queue."""
    while order and (outcome := order[0][1]) is not None:
        yield order.popleft()[0], outcome


def _scan_of(pixels: NDArray[np.generic], value_range: tuple[float, float] | None) -> Scan:
    """Convert an array to a scan.

    Raises
    ------
    UnsupportedScan
        With reason ``"range"`` (the range is missing or invalid, or values are outside it),
        ``"dimensions"``, ``"empty"`` or ``"not finite"``.
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
