"""The results store: what is written is read back, and a stranger's file is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly import results
from anomaly.errors import AnomalyError
from anomaly.results import (
    ScoreRow,
    export_csv,
    read_evidence,
    read_scores,
    write_evidence,
    write_scores,
)

ROWS = [
    ScoreRow(
        "0a",
        "scored",
        score=1.5,
        p_value=0.04,
        flagged=True,
        evidence_peak=9.25,
        regions=2,
        view="PA",
        features={"nll": 3.25, "residual_0.5": 1e-3},
    ),
    ScoreRow("1b", "scored", score=0.1 + 0.2, features={"nll": -1.0}),  # not calibrated
    ScoreRow("2c", "not scored", reason="truncated", features={}),
]


def test_rows_and_provenance_come_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.parquet"
    write_scores(path, ROWS, {"bundle": "abc", "alpha": "0.05"})
    rows, provenance = read_scores(path)
    assert rows == ROWS
    assert provenance == {"bundle": "abc", "alpha": "0.05"}
    assert [p.name for p in path.parent.iterdir()] == ["scores.parquet"]


def test_an_empty_table_comes_back_empty(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.parquet", [], {})
    assert read_scores(tmp_path / "s.parquet") == ([], {})


def test_missing_values_are_empty_cells(tmp_path: Path) -> None:
    export_csv(tmp_path / "s.csv", ROWS)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert table == [
        [
            "key",
            "status",
            "reason",
            "score",
            "p_value",
            "flagged",
            "evidence_peak",
            "regions",
            "view",
        ],
        ["0a", "scored", "", "1.5", "0.04", "True", "9.25", "2", "PA"],
        ["1b", "scored", "", "0.30000000000000004", "", "", "", "", ""],
        ["2c", "not scored", "truncated", "", "", "", "", "", ""],
    ]


def test_a_failed_write_leaves_the_old_table_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, ROWS, {})

    def disk_full(_table: Any, file: Any, **_: Any) -> None:
        file.write(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_scores(path, ROWS[:1], {})
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]
    assert read_scores(path)[0] == ROWS


@pytest.mark.parametrize("content", [b"", b"PAR1", b"key,status\n", b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    path.write_bytes(content)
    with pytest.raises(AnomalyError, match=r"s\.parquet cannot be read"):
        read_scores(path)


def test_a_truncated_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_scores(path, ROWS, {})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AnomalyError, match="cannot be read"):
        read_scores(path)


def test_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["x"], "age": [3]}), tmp_path / "s.parquet")
    with pytest.raises(AnomalyError, match=r"\['name', 'age'\]: not scores of this version"):
        read_scores(tmp_path / "s.parquet")


def test_our_columns_without_provenance_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_scores(path, ROWS, {})
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(AnomalyError, match="not scores of this version"):
        read_scores(path)


def test_no_scores_says_which_stage_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AnomalyError, match="run `anomaly score` first"):
        read_scores(tmp_path / "s.parquet")


def test_evidence_comes_back_in_half_precision(tmp_path: Path) -> None:
    evidence = np.random.default_rng(0).uniform(0, 30, (5, 7)).astype(np.float32)
    write_evidence(tmp_path / "e", "abc", evidence)
    again = read_evidence(tmp_path / "e", "abc")
    assert again.dtype == np.float32
    assert again.shape == (5, 7)
    # float16 keeps 11 bits: a relative error of at most 2**-11
    np.testing.assert_allclose(again, evidence, rtol=2**-11)
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["abc.npz"]


def test_absurd_evidence_stays_finite_and_largest(tmp_path: Path) -> None:
    write_evidence(tmp_path, "k", np.array([[1e9, 2.0]], dtype=np.float32))
    assert read_evidence(tmp_path, "k").tolist() == [[65504.0, 2.0]]  # the largest float16
