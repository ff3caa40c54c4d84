"""Rows and evidence maps of one shard, from the outcomes of its scans.

::

    scored scan  -> row with its verdict; its map, if the configuration keeps it
    other scan   -> row with the reason
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anomaly.config import Config
from anomaly.data.table.pseudonyms import pseudonym
from anomaly.scoring.judging import judge
from anomaly.scoring.scorer import Outcome, ScoredScan
from anomaly.scoring.shards import Shard
from anomaly.store.bundle import Bundle
from anomaly.store.parts import spread_key
from anomaly.store.results import ScoreRow
from anomaly.types import Verdict

__all__ = ["shard_results"]


def shard_results(
    shard: Shard, outcomes: Iterable[Outcome], bundle: Bundle, config: Config, site_key: bytes
) -> tuple[list[ScoreRow], dict[str, NDArray[np.float32]]]:
    """Return the rows of a shard, in order, and the maps to store, by key.

    Parameters
    ----------
    shard : Shard
    outcomes : iterable of Outcome
        One for each row of the shard, in order.
    bundle : Bundle
        The bundle that scored them.
    config : Config
        Configuration of the run, for its alpha and the choice of maps to store.
    site_key : bytes
        Secret key of the pseudonyms.
    """
    rows: list[ScoreRow] = []
    maps = {}
    for source, outcome in zip(shard.rows, outcomes, strict=True):
        if isinstance(outcome, ScoredScan):
            row = _row(outcome, judge(outcome, bundle, config.alpha))
            if config.results.keeps_map(row.key, flagged=bool(row.flagged)):
                maps[row.key] = outcome.evidence
                if outcome.explanation:
                    maps[spread_key(row.key)] = outcome.spread
                row = replace(row, map_part=shard.index)
        else:
            row = ScoreRow(source.key, "not scored", reason=outcome[1].reason, view=source.view)
        study = source.study and pseudonym(site_key, f"study {source.study}")
        patient = source.patient and pseudonym(site_key, f"patient {source.patient}")
        seen = bundle.has_seen(source)
        rows.append(replace(row, study=study, patient=patient, site=source.site, seen=seen))
    return rows, maps


def _row(item: ScoredScan, verdict: Verdict) -> ScoreRow:
    return ScoreRow(
        item.source.row.key,
        "scored",
        score=verdict.score,
        p_value=verdict.p_value,
        flagged=verdict.flag,
        evidence_peak=verdict.evidence_peak,
        regions=len(verdict.regions) if verdict.flag is not None else None,
        view=item.source.row.view,
        features=dict(verdict.features),
        part=verdict.part,
        explanation=verdict.explanation,
    )
