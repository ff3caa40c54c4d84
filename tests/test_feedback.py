"""Feedback: everything said is kept, in order, for its owner alone, and can be asked for in SQL."""

from __future__ import annotations

import json
import re
import stat
import threading
from pathlib import Path

import pytest

from anomaly.errors import AnomalyError
from anomaly.pipelines.run import RunFolder
from anomaly.store.readings import Feedback
from anomaly.store.results import Provenance, Results, ScoreRow
from tests.pipelines.road import done, refused


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


def saved(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def verdict(key: str = "0a", opinion: object = "agree", **more: object) -> dict[str, object]:
    return {"key": key, "opinion": opinion, "comment": "", "reader": "r1", **more}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder, made_of = RunFolder(tmp_path / "run"), Provenance("b", "m", "i", "s", 0.05, 1)
    folder.path.mkdir()
    folder.results.begin(made_of)
    rows = [ScoreRow("0a", "scored", score=2.0), ScoreRow("1b", "not scored", reason="truncated")]
    folder.results.write(0, rows, {}, made_of)
    return folder


def said(run: RunFolder) -> list[tuple[str, ...]]:
    return [(e.key, e.opinion, e.reader, e.comment) for e in Feedback.read(run.feedback)]


def test_a_file_of_verdicts_is_merged_once(run: RunFolder, tmp_path: Path) -> None:
    done("feedback", run.path, "0a", "agree", "--reader", "r1")
    comment = "a clip; 'quoted'\n<b>Łódź</b> 写"
    entries = [
        verdict(),  # said at the command line before
        verdict("1b", "disagree", comment=comment),
        verdict(reader="r2"),
        verdict("1b", "disagree", comment=comment),  # twice in one file
        {"key": "0a", "opinion": "disagree"},
    ]
    path = saved(tmp_path / "verdicts.json", entries)
    first = done("feedback", run.path, "--merge", path)
    assert first.out == "3 verdicts merged, 2 were there already\n"
    expected = [
        ("0a", "agree", "r1", ""),
        ("1b", "disagree", "r1", comment),
        ("0a", "agree", "r2", ""),
        ("0a", "disagree", "", ""),
    ]
    assert said(run) == expected
    assert all(entry.at.endswith("+00:00") for entry in Feedback.read(run.feedback))
    again = done("feedback", run.path, "--merge", path)
    assert again.out == "0 verdicts merged, 5 were there already\n"
    assert said(run) == expected
    assert stat.S_IMODE(run.feedback.stat().st_mode) == 0o600


def test_a_verdict_keeps_its_time_and_another_time_is_another_verdict(
    run: RunFolder, tmp_path: Path
) -> None:
    first = verdict(at="2026-03-14T09:26:53.589Z")
    path = saved(tmp_path / "f", [first, verdict("1b", "disagree", at="2024-02-29T23:59:59+00:00")])
    assert done("feedback", run.path, "--merge", path).out.startswith("2 verdicts merged")
    times = [entry.at for entry in Feedback.read(run.feedback)]
    assert times == ["2026-03-14T09:26:53+00:00", "2024-02-29T23:59:59+00:00"]

    # of the same second: the same; of another: the reader said so again
    entries = [first, verdict(at="2026-03-14T09:26:53Z"), verdict(at="2026-03-14T09:26:54Z")]
    again = done("feedback", run.path, "--merge", saved(path, entries))
    assert again.out == "1 verdicts merged, 2 were there already\n"
    # a file of a page that noted no time: the words are there
    old = done("feedback", run.path, "--merge", saved(path, [verdict()]))
    assert old.out == "0 verdicts merged, 1 were there already\n"
    assert len(Feedback.read(run.feedback)) == 3


NO_TIMES = [
    "",
    "yesterday",
    "2026-03-14",
    "2026-03-14T09:26:53",  # of which zone?
    "2026-03-14T09:26:53+01:00",
    "2026-03-14 09:26:53Z",
    "2026-02-30T09:26:53Z",
    "2026-03-14T24:26:53Z",
    "2026-03-14T09:26:53.Z",
    "2026-03-14T09:26:53Z\n",
    "٢٠٢٦-03-14T09:26:53Z",
]


@pytest.mark.parametrize("at", NO_TIMES)
def test_what_is_no_time_in_utc_stops_the_whole_file(
    run: RunFolder, tmp_path: Path, at: str
) -> None:
    path = saved(tmp_path / "f", [verdict(), verdict("1b", at=at)])
    error = refused("feedback", run.path, "--merge", path)
    assert "the time `at` of entry 2 of" in error
    assert "expected a time in UTC such as 2026-03-14T09:26:53Z" in error
    assert said(run) == []


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (verdict(at=None), "the at of entry 2 of .* is a NoneType"),
        (verdict(at=1773480413), "the at of entry 2 of .* is a int"),
        (verdict("2c"), "entry 2 of .* is about '2c', which no row of"),
        (verdict("2c" * 1000), "entry 2 of .* is about '2c2c"),
        (verdict(opinion="maybe"), "the opinion of entry 2 of .* is 'maybe': expected one of"),
        (verdict(comment="é" * 5001), "the comment of entry 2 of .* has 10002 bytes"),
        (verdict(reader="x" * 10_001), "the reader of entry 2 of .* has 10001 bytes"),
        (verdict("k" * 10_001), "the key of entry 2 of .* has 10001 bytes"),
        (verdict(opinion="o" * 10_001), "the opinion of entry 2 of .* has 10001 bytes"),
        (verdict(comment="\ud800"), "the comment of entry 2 of .* is no text"),
        (verdict(comment=None), "the comment of entry 2 of .* is a NoneType"),
        (verdict(opinion=["agree"]), "the opinion of entry 2 of .* is a list"),
        (verdict(path="/etc"), r"entry 2 of .* holds \['comment', 'key', 'opinion', 'path', "),
        ({"key": "0a"}, r"entry 2 of .* holds \['key'\]: expected key and opinion"),
        ("agree", "entry 2 of .* holds str: expected key and opinion"),
        (None, "entry 2 of .* holds NoneType"),
    ],
)
def test_one_bad_entry_stops_the_whole_file(
    run: RunFolder, tmp_path: Path, bad: object, sentence: str
) -> None:
    path = saved(tmp_path / "verdicts.json", [verdict(), bad, verdict("1b")])
    error = refused("feedback", run.path, "--merge", path)
    assert re.search(sentence, error), error
    assert len(error) < 1000
    assert said(run) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as verdicts"),
        (b"[{", "cannot be read as verdicts"),
        (b"\xff\xfe\xfd", "cannot be read as verdicts"),
        (b"[" * 100_000, "cannot be read as verdicts"),
        (b'{"key": "0a"}', "holds a dict: expected a JSON list"),
        (b"[]" + b" " * 9_999_999, "is larger than 10000000 bytes"),
    ],
    ids=["empty", "cut", "binary", "deep", "no list", "large"],
)
def test_what_is_no_file_of_verdicts_is_refused(
    run: RunFolder, tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "f").write_bytes(content)
    assert sentence in refused("feedback", run.path, "--merge", tmp_path / "f")
    assert not run.feedback.exists()


def test_the_limits_themselves_are_allowed(run: RunFolder, tmp_path: Path) -> None:
    path = saved(tmp_path / "f", [verdict(comment="é" * 5000)])
    path.write_bytes(path.read_bytes().ljust(10_000_000))
    assert done("feedback", run.path, "--merge", path).out.startswith("1 verdicts merged")
    assert done("feedback", run.path, "--merge", saved(path, [])).out.startswith("0 verdicts")


def test_a_file_or_a_verdict_is_needed_not_both(run: RunFolder, tmp_path: Path) -> None:
    path = saved(tmp_path / "f", [verdict()])
    assert "needs KEY and agree or disagree" in refused("feedback", run.path)
    assert "needs KEY and agree or disagree" in refused("feedback", run.path, "0a")
    for more in (("0a", "agree"), ("--reader", "r"), ("--comment", "c")):
        assert "says it all" in refused("feedback", run.path, *more, "--merge", path)
    assert "cannot be read" in refused("feedback", run.path, "--merge", tmp_path / "none")
    assert said(run) == []


def test_merging_at_once_adds_everything_once(tmp_path: Path) -> None:
    path, added = tmp_path / "f", []
    entries = [Feedback(str(number), "agree") for number in range(200)]

    def merge() -> None:
        added.append(Feedback.merge(path, entries))

    threads = [threading.Thread(target=merge) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [0, 0, 0, 200]
    assert [entry.key for entry in Feedback.read(path)] == [entry.key for entry in entries]


def test_a_name_that_stands_twice_in_an_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "readings.json"
    path.write_text('[{"key": "a", "opinion": "agree", "opinion": "disagree"}]')
    with pytest.raises(AnomalyError, match="'opinion' stands twice in one entry"):
        Feedback.parse(path)


def test_no_flipped_bit_of_a_file_of_readings_is_read_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    Feedback("0a", "disagree", "r1", "a clip", "2026-01-01T00:00:00+00:00").add(path)
    content, intact = path.read_bytes(), Feedback.read(path)
    refused_flips = 0
    # Two pages of 4096 bytes: the header, the schema at the end of the first, what heads the
    # second, and the entry at its end; of the nothing between, every 16th byte.
    table, entry = 4096, len(content) - 300
    places = [*range(120), *range(table - 196, table + 104), *range(table + 104, entry, 16)]
    for place in (*places, *range(entry, len(content))):
        for bit in range(8):
            path.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            )
            try:
                assert Feedback.read(path) == intact
            except AnomalyError:
                refused_flips += 1
    assert refused_flips > 500
