"""dicom: scores -> DICOM objects for the PACS of the scans.

Every scored scan gets a report. Objects with pixels are written only for flagged scans, because an
overlay on an unremarkable scan has no meaning. Scans that are not DICOM files, or have no kept
evidence map, get no objects and are counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly.config import Config
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import Lost, Workers
from anomaly.data.readers.registry import read_scan
from anomaly.data.readers.zips import on_disk
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import ConfigError, Reason, ScanError, UnsupportedScan
from anomaly.files import make_results_folder, refuse_foreign
from anomaly.logs import Public
from anomaly.pipelines.run import RunFolder
from anomaly.progress import progress_bar
from anomaly.reporting.dicom.objects import KINDS, DicomCase, Kind, write_objects
from anomaly.scoring.verdicts import OperatingPoint, matching_scores
from anomaly.store.bundle import read_bundle
from anomaly.store.results import Results, ScoreRow

__all__ = ["DEFAULT_KINDS", "Written", "kinds_of", "write_dicom"]

log = logging.getLogger(__name__)

DEFAULT_KINDS: tuple[Kind, ...] = ("report", "overlay")


@dataclass(frozen=True)
class Written:
    """The DICOM objects written for a run.

    Attributes
    ----------
    paths : tuple of Path
        One file per object.
    left_out : dict of str to int
        Reason -> number of objects that were not written.
    """

    paths: tuple[Path, ...]
    left_out: dict[str, int]


def kinds_of(text: str) -> tuple[Kind, ...]:
    """Parse a comma-separated list of kinds of objects.

    Raises
    ------
    ConfigError
        A kind is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name not in KINDS]
    if wrong:
        raise ConfigError(f"objects are {text!r}: {wrong[0]!r} is none of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def write_dicom(
    run: RunFolder,
    config: Config,
    kinds: Sequence[Kind] = DEFAULT_KINDS,
    folder: Path | None = None,
    processes: Workers | None = None,
) -> Written:
    """Write the verdicts of a run as DICOM objects.

    The scans are read again, in worker processes, because their files are untrusted.

    Parameters
    ----------
    run : RunFolder
    config : Config
    kinds : sequence of Kind
    folder : Path, optional
        Default ``RUN/dicom``; a new folder gets mode 0700, because the files name patients.
    processes : Workers, optional
        Existing worker processes.

    Raises
    ------
    NotCalibrated
        The bundle is not calibrated.
    AnomalyError
        The run is not scored, or a file cannot be written.
    """
    bundle = read_bundle(run.bundle)
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    rows, provenance = matching_scores(run.results, manifest, bundle)
    by_key = {row.key: row for row in manifest.select()}
    target = folder or run.dicom
    refuse_foreign(target)
    make_results_folder(target, mode=0o700)
    scored = [row for row in rows if row.status == "scored"]
    todo = (
        _Todo(
            row,
            by_key[row.key],
            tuple(kind for kind in kinds if row.flagged or kind == "report"),
        )
        for row in scored
    )
    point = OperatingPoint.of(bundle, provenance.alpha)
    write = _Writing(run.results, point, config.data.root, config.intensity, target)
    paths: list[Path] = []
    left_out: Counter[str] = Counter()
    pool = nullcontext(processes) if processes else Workers(1, config.data.seconds)
    with pool as workers, progress_bar(len(scored), "writing DICOM", "scan") as bar:
        for item, written in workers.map(write, todo):
            if isinstance(written, Lost):
                left_out[written.error().reason] += len(item.kinds)
            else:
                paths += written.paths
                left_out.update(written.left_out)
            bar.update()
    log.info("%d DICOM objects of %d scans", len(paths), len(scored))
    for reason, count in left_out.most_common():
        log.info("%d objects left out: %s", count, Public(reason))
    run.record("dicom", {"objects": len(paths), "left_out": dict(left_out)}, [target])
    return Written(tuple(paths), dict(left_out))


@dataclass(frozen=True)
class _Todo:
    """A scan and the kinds of objects to write for it."""

    row: ScoreRow
    scan: ManifestRow
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class _Writing:
    """Writes the objects of a scan; can be pickled."""

    results: Results
    point: OperatingPoint
    root: Path
    intensity: IntensityPolicy
    folder: Path

    def __call__(self, todo: _Todo) -> Written:
        left_out: Counter[str] = Counter()
        paths: list[Path] = []
        try:
            with on_disk(self.root / todo.scan.path) as source:
                case = self._case(source, todo)
                for kind in todo.kinds:
                    try:
                        paths += write_objects(case, [kind], self.folder)
                    except ScanError as error:
                        left_out[error.reason] += 1
        except ScanError as error:
            left_out[error.reason] += len(todo.kinds)
        return Written(tuple(paths), dict(left_out))

    def _case(self, source: Path, todo: _Todo) -> DicomCase:
        if todo.scan.kind != "dicom":
            raise UnsupportedScan(Reason.NOT_DICOM, "the scan names no patient, study or series")
        evidence = self.results.evidence(todo.row)
        if evidence is None:
            raise UnsupportedScan(Reason.NO_MAP_KEPT, "score with results.maps = all")
        point = self.point
        scan = read_scan(source, todo.scan.frame, self.intensity, sha256=todo.scan.sha256)
        display = scan.display
        shown = display(scan.pixels)
        return DicomCase(
            source=source,
            frame=todo.scan.frame,
            verdict=point.verdict(
                todo.row, todo.scan, evidence, self.results.spread(todo.row), stored=True
            ),
            image=np.ascontiguousarray(scan.orientation.store(shown)),
            evidence_threshold=point.evidence_threshold,
            evidence_ceiling=point.evidence_ceiling,
            calibration_scans=point.calibration_scans,
            bundle=point.bundle,
            frame_count=scan.frame_count,
            spread=None if scan.voi else (float(display.grey[0]), float(display.grey[-1])),
            seen=todo.row.seen,
        )
