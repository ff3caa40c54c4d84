"""study: one study of a scored run -> a PDF."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomaly.config import Config
from anomaly.errors import AnomalyError
from anomaly.files import make_results_folder, writing
from anomaly.pipelines.report import ScoredRun
from anomaly.pipelines.run import RunFolder
from anomaly.reporting.html.pictures import file_stem
from anomaly.reporting.pdf.study import write_study
from anomaly.store.results import ScoreRow

__all__ = ["study_pdf"]

log = logging.getLogger(__name__)


def study_pdf(
    run: RunFolder, config: Config, key: str, *, images: bool = True, max_images: int = 500
) -> Path:
    """Write ``RUN/studies/STUDY.pdf`` and return its path.

    Parameters
    ----------
    run : RunFolder
    config : Config
    key : str
        Pseudonym of the study, or of a scan in it. A scan without a known study gets a PDF of its
        own, under the scan's pseudonym.
    images, max_images
        See `anomaly.pipelines.report.report`.

    Raises
    ------
    AnomalyError
        No study and no scan has this pseudonym, or the run is not scored.
    ConfigError
        The packages that write a PDF are not installed.
    NotCalibrated
        The bundle is not calibrated.
    """
    source = ScoredRun.open(run, config)
    name, rows = _study_of(source.rows, key, run)
    data = source.report_data(rows, max_images=max_images if images else 0)
    strays = sum(row.status != "scored" and not row.study for row in source.rows)
    if strays:  # their files state no study; some may belong to this one
        remarks = {"not scored and of no known study": f"{strays:,} of the run's files"}
        data = replace(data, provenance={**remarks, **data.provenance})
    with writing(run.studies):
        make_results_folder(run.studies)
    path = run.studies / f"{file_stem(name)}.pdf"  # the name in the parts is untrusted
    with writing(path):
        write_study(data, name, path)
    log.info("a study of %d scan(s) written", len(rows))
    run.record("study", {"scans": len(rows)}, [path])
    return path


def _study_of(rows: Sequence[ScoreRow], key: str, run: RunFolder) -> tuple[str, list[ScoreRow]]:
    match = next((row for row in rows if row.key == key), None)
    if match is not None and not match.study:
        return key, [match]
    name = match.study if match is not None else key
    study = [row for row in rows if row.study and row.study == name]
    if not study:
        raise AnomalyError(
            f"no scan and no study of {run.path} has the pseudonym {key!r}: the report page and "
            f"{run.scores_csv} list them"
        )
    return name, study
