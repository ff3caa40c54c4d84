"""Feedback: everything said is kept, in order, for its owner alone, and can be asked for in SQL."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from anomaly.errors import AnomalyError
from anomaly.feedback import Feedback
from anomaly.results import Provenance, Results, ScoreRow


def test_what_is_said_comes_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    said = [
        Feedback("0a", "disagree", "r1", "a clip; 'quoted'", "2026-01-01T00:00:00+00:00"),
        Feedback("0a", "agree", "r2", "", "2026-01-02T00:00:00+00:00"),
        Feedback("1b", "agree", at="2026-01-01T12:00:00+00:00"),
    ]
    assert Feedback.read(path) == []
    assert not path.exists()
    for entry in said:
        entry.add(path)
    assert Feedback.read(path) == said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_time_is_noted_where_it_is_not_said(tmp_path: Path) -> None:
    Feedback("0a", "agree").add(tmp_path / "f")
    (entry,) = Feedback.read(tmp_path / "f")
    assert entry.at.endswith("+00:00")
    assert len(entry.at) == 25


def test_readers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"

    def speak(reader: int) -> None:
        for number in range(20):
            Feedback(str(number), "agree", str(reader)).add(path)

    readers = [threading.Thread(target=speak, args=(reader,)) for reader in range(4)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    said = {(entry.reader, entry.key) for entry in Feedback.read(path)}
    assert said == {(str(r), str(n)) for r in range(4) for n in range(20)}
    assert len(Feedback.read(path)) == 80


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("not a database, " * 100)
    with pytest.raises(AnomalyError, match="expected a SQLite file of feedback"):
        Feedback.read(tmp_path / "f")
    with pytest.raises(AnomalyError, match="expected a SQLite file of feedback"):
        Feedback("k", "agree").add(tmp_path / "missing" / "f")


def test_scores_and_feedback_meet_in_sql(tmp_path: Path) -> None:
    store, made_of = Results(tmp_path / "parts"), Provenance("b", "m", "i", "s", 0.05, 1)
    store.begin(made_of)
    store.write(0, [ScoreRow("0a", "scored", score=2.0), ScoreRow("1b", "scored")], {}, made_of)
    Feedback("0a", "disagree").add(tmp_path / "f")
    found = store.query(
        "SELECT key, score, opinion FROM scores JOIN feedback USING (key)",
        feedback=Feedback.table(tmp_path / "f"),
    )
    assert found.to_pylist() == [{"key": "0a", "score": 2.0, "opinion": "disagree"}]
    nothing = store.query("SELECT * FROM feedback", feedback=Feedback.table(tmp_path / "none"))
    assert nothing.num_rows == 0
