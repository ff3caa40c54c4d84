"""Batches: the same scores however scans are decoded, one group a batch, a bounded way ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.data.images.network_images import ImageReader
from anomaly.data.readers.isolation import Workers
from anomaly.data.readers.registry import content_hash
from anomaly.data.synthetic.phantom import draw_phantom
from anomaly.data.table.manifest import ManifestRow
from anomaly.errors import Reason
from anomaly.scoring import scorer as module
from anomaly.scoring.scorer import Outcome, ScoredScan, Scorer
from anomaly.store.bundle import read_bundle
from tests.data.dicom_family import KINDS, MEMBERS, TOP, TURNED, member, write
from tests.pipelines.road import Road

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scorer(road: Road) -> Scorer:
    bundle = read_bundle(road.run.bundle)
    config = bundle.config
    return Scorer(bundle, ImageReader(road.scans, config.intensity, config.preprocessing), CPU)


def rows(road: Road, count: int) -> list[ManifestRow]:
    """Usable scans, one that is gone and one that was never usable."""
    usable = list(road.manifest.select())[:count]
    gone = replace(usable[0], path="gone.dcm", key="gone")
    return [usable[0], gone, *usable[1:], usable[0].skipped(Reason.TRUNCATED, "it ends")]


def said(outcomes: Iterator[tuple[int, Outcome]]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for group, item in outcomes:
        if isinstance(item, ScoredScan):
            found.append((group, item.score, item.evidence.tobytes(), item.features))
        else:
            found.append((group, item[0].key, item[1].reason))
    return found


def test_processes_decode_to_the_same_bits(road: Road, scorer: Scorer) -> None:
    items = [(0, row) for row in rows(road, 40)]
    alone = said(scorer.score(items))
    with Workers(2) as workers:
        assert said(replace(scorer, workers=workers).score(items)) == alone
        # the same processes, once more
        assert said(replace(scorer, workers=workers).score(items[:3])) == said(
            scorer.score(items[:3])
        )
    assert [line[2] for line in alone if len(line) == 3] == ["unreadable", "truncated"]
    assert len(alone) == 42


@pytest.mark.parametrize("kind", KINDS)
def test_what_must_read_the_same_scores_the_same(kind: str, scorer: Scorer, tmp_path: Path) -> None:
    """Every coding, bit layout and orientation of one picture, alone in its batch."""
    picture = draw_phantom(np.random.default_rng(3), (96, 84)).image
    values = np.rint(picture * TOP).astype(np.uint16)
    makes = {"plain": member, **MEMBERS, **({} if kind == "MG" else TURNED)}
    scores = set()
    for index, make in enumerate(makes.values()):
        write(tmp_path / f"{index}.dcm", make(kind, values))
        sha256 = content_hash(tmp_path / f"{index}.dcm")
        row = ManifestRow(key=f"{index}", path=f"{index}.dcm", frame=0, sha256=sha256)
        reader = replace(scorer.reader, root=tmp_path)
        ((_, found),) = replace(scorer, reader=reader).score([(0, row)])
        assert isinstance(found, ScoredScan)
        scores.add((found.score, found.evidence.tobytes()))
    assert len(makes) == (11 if kind == "MG" else 16)
    assert len(scores) == 1


def test_a_batch_holds_scans_of_one_group(road: Road, scorer: Scorer) -> None:
    scans = rows(road, 45)
    cuts = [scans[:5], scans[5:44], scans[44:]]
    together = said(scorer.score((g, row) for g, cut in enumerate(cuts) for row in cut))
    apart = [line for g, cut in enumerate(cuts) for line in said(scorer.score((g, r) for r in cut))]
    assert together == apart


def test_rows_are_taken_a_bounded_number_ahead(
    road: Road, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "batch_size", lambda side: 4)
    taken = 0

    def endless() -> Iterator[tuple[int, ManifestRow]]:
        nonlocal taken
        for row in road.manifest.select():
            taken += 1
            yield 0, row

    outcomes = scorer.score(endless())
    for _ in range(5):
        next(outcomes)
    # Five given out: the fifth is of the second batch, and one batch per thread is being looked at.
    assert taken <= (2 + torch.get_num_threads()) * 4 + 1
    assert isinstance(outcomes, Generator)
    outcomes.close()


def test_a_score_that_is_no_number_is_refused(
    road: Road, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> object:
        found = original(*arguments)  # type: ignore[arg-type]
        found.scores[1] = np.nan
        return found

    original = module.score_observation
    monkeypatch.setattr(module, "score_observation", broken)
    scans = [(0, row) for row in road.manifest.select()[:3]]
    found = [item for _, item in scorer.score(scans)]
    assert [isinstance(item, ScoredScan) for item in found] == [True, False, True]
    assert not isinstance(found[1], ScoredScan)
    assert found[1][1].reason == "score not finite"
