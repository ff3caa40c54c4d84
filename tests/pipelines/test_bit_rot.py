"""A disk that loses a bit: whatever file of a run it is in, it is said, or nothing has changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from anomaly.config import load_config
from anomaly.data.table.manifest import NOT_LISTED, Manifest
from anomaly.errors import AnomalyError
from anomaly.pipelines.run import RunFolder
from anomaly.store.sums import SUMS
from tests.pipelines.flips import Outcome, flipped, look
from tests.pipelines.road import Road, anomaly, done, refused


@pytest.fixture
def run(road: Road, tmp_path: Path) -> RunFolder:
    """Return a run with a report, an evaluation and a reading."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(road.run.path, folder.path)
    done("report", folder.path)
    done("evaluate", folder.path)
    done("feedback", folder.path, road.rows[0].key, "agree", "--comment", "a clip")
    return folder


def flip(path: Path, place: int, bit: int) -> None:
    """Flip a bit in place, as a disk does: the file stays as old as it is."""
    before = path.stat()
    content = flipped(path.read_bytes(), place, bit)
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_no_flipped_bit_is_silent(run: RunFolder) -> None:
    """More of them: benchmarks/bit_flips.py."""
    intact = look(run.path)
    assert intact.faults == ()
    files = [path for path in sorted(run.path.rglob("*")) if path.is_file()]
    rng, outcomes = random.Random(0), Counter[str]()  # noqa: S311
    for _ in range(150):
        path = rng.choice(files)
        content = path.read_bytes()
        if not content:
            continue
        flip(path, rng.randrange(len(content)), rng.randrange(8))
        seen = look(run.path)
        outcomes["detected" if seen.faults else "harmless"] += 1
        if not seen.faults:
            assert seen.results == intact.results, path.relative_to(run.path)
        path.unlink()
        path.write_bytes(content)
    assert outcomes["detected"] > 100


def test_verify_says_what_is_intact_and_what_is_not(run: RunFolder) -> None:
    said = done("verify", run.path).out
    for name in ("config.yaml", "manifest.parquet", "site.key", "bundle", "parts"):
        assert f"{name}: intact" in said
    assert "damaged" not in said
    flip(run.report, 1000, 0)
    flip(run.results.part(0), 40, 0)
    flip(run.results.worklist, 40, 0)
    damaged = anomaly("verify", run.path)
    assert damaged.code == 1
    assert "report/index.html: damaged" in damaged.out
    assert "part-00000.parquet: damaged" in damaged.out
    assert "worklist.parquet: not as it was written" in damaged.out
    assert "scores.csv" not in damaged.out


def test_a_later_stage_does_not_bless_the_damage(run: RunFolder) -> None:
    flip(run.metrics, 20, 1)
    done("report", run.path)
    assert "metrics.json: damaged" in anomaly("verify", run.path).out
    done("evaluate", run.path)
    assert "metrics.json:" not in done("verify", run.path).out


def test_sums_are_those_of_sha256sum(run: RunFolder) -> None:
    names = [line.split("  ", 1)[1] for line in (run.path / SUMS).read_text().splitlines()]
    assert {"report/index.html", "metrics.json"} <= set(names)
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    subprocess.run(command, cwd=run.path, check=True)
    assert not any(name.startswith(("parts/", "bundle/", "spool/")) for name in names)


@pytest.mark.parametrize("what", ["rows", "maps"])
def test_a_damaged_part_is_scored_again_and_nothing_else(
    road: Road, run: RunFolder, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = {i: run.results.part(i).stat().st_ino for i in run.results.done()}
    path = run.results.part(0) if what == "rows" else run.results.maps(0)
    flip(path, path.stat().st_size // 2, 4)
    if what == "rows":
        assert "part-00000.parquet is damaged" in refused("report", run.path)
    done("score", run.path)
    assert "part-00000.parquet is damaged: it is scored again" in caplog.text
    assert run.results.read()[0] == road.rows
    after = {i: run.results.part(i).stat().st_ino for i in run.results.done()}
    assert {i for i in after if after[i] != before[i]} == {0}
    assert done("verify", run.path).out


def test_an_edited_table_for_a_spreadsheet_is_kept_and_said(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    run.scores_csv.write_text("mine")
    done("score", run.path)
    assert "scores.csv is not as it was written" in caplog.text
    assert run.scores_csv.read_text() == "mine"
    run.scores_csv.unlink()
    done("score", run.path)
    assert run.scores_csv.read_text().startswith("key,")
    assert done("verify", run.path).out


def test_a_configuration_that_was_edited_is_not_what_ran(run: RunFolder, tmp_path: Path) -> None:
    text = run.config.read_text()
    run.config.write_text(text.replace("alpha: 0.1", "alpha: 0.2"))
    assert "config.yaml is not what was written there" in refused("score", run.path)
    copy = tmp_path / "mine.yaml"
    copy.write_text(run.config.read_text().partition("\n")[2])
    assert load_config(copy).alpha == 0.2


def test_a_manifest_that_says_something_else_is_refused(run: RunFolder) -> None:
    content = run.manifest.read_bytes()
    intact, silent = Manifest.read(run.manifest), 0
    for place in range(0, len(content), max(1, len(content) // 400)):
        run.manifest.write_bytes(flipped(content, place, place % 8))
        try:
            silent += Manifest.read(run.manifest) != intact
        except AnomalyError:
            continue
    assert silent == 0


def test_a_damaged_manifest_is_made_again_as_it_was(road: Road, run: RunFolder) -> None:
    intact = Manifest.read(run.manifest)
    content = run.manifest.read_bytes()
    command = ("prepare", run.path, "--config", road.config, "--data", road.scans)
    run.manifest.write_bytes(flipped(content, len(content) - 1, 0))
    assert "manifest.parquet" in refused("evaluate", run.path)
    assert "give another table of scans" in refused(*command, "--set", "data.seed=9")
    done(*command)
    assert Manifest.read(run.manifest).hash == intact.hash
    done("evaluate", run.path)


def test_runs_of_earlier_versions_are_read(run: RunFolder) -> None:
    """Without hashes, shards, and the columns that have come since."""
    table = pq.read_table(run.manifest)
    metadata = {b"root": table.schema.metadata[b"root"]}
    pq.write_table(table.drop_columns(["mask"]).replace_schema_metadata(metadata), run.manifest)
    assert {row.mask for row in Manifest.read(run.manifest).rows} == {NOT_LISTED}
    for index in run.results.done():
        part = pq.read_table(run.results.part(index))
        kept = {b"provenance": part.schema.metadata[b"provenance"]}
        pq.write_table(part.replace_schema_metadata(kept), run.results.part(index))
        run.results.checksums(index).unlink()
    finished = json.loads(run.results.finished.read_text())
    del finished["sha256"]
    run.results.finished.write_text(json.dumps(finished, indent=1))
    run.config.write_text(run.config.read_text().partition("\n")[2])
    (run.path / SUMS).unlink()
    before = {i: run.results.part(i).stat().st_ino for i in run.results.done()}
    assert before
    done("query", run.path, "SELECT count(*) FROM scores")
    done("evaluate", run.path)
    done("report", run.path)
    done("score", run.path)
    assert {i: run.results.part(i).stat().st_ino for i in run.results.done()} == before


def test_a_copy_and_a_clock_change_nothing(run: RunFolder, tmp_path: Path) -> None:
    """A copy has other times, and so has a machine whose clock was set."""
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(run.path, copy.path, copy_function=shutil.copyfile)
    os.utime(copy.path / SUMS, (0, 0))
    assert done("verify", copy.path).out
    os.utime(copy.path / SUMS, (2**33, 2**33))
    done("report", copy.path)
    assert done("verify", copy.path).out
    content = copy.metrics.read_bytes()
    copy.metrics.write_bytes(flipped(content, len(content) // 2, 1))  # and another time
    done("report", copy.path)
    assert "metrics.json: damaged" in anomaly("verify", copy.path).out


def test_stages_that_end_together_damage_nothing(run: RunFolder) -> None:
    def end(number: int) -> None:
        for _ in range(10):
            (run.path / f"{number}.txt").write_text(str(number))
            run.record("test", {"number": number}, [run.path / f"{number}.txt"])

    def come_and_go() -> None:
        while not ended.is_set():
            (run.report.parent / "images" / "passing.png").write_bytes(b"1")
            (run.report.parent / "images" / "passing.png").unlink()

    ended = threading.Event()
    passing = threading.Thread(target=come_and_go)
    passing.start()
    stages = [threading.Thread(target=end, args=(number,)) for number in range(4)]
    for stage in stages:
        stage.start()
    for stage in stages:
        stage.join()
    ended.set()
    passing.join()
    said = anomaly("verify", run.path).out
    assert [line for line in said.splitlines() if "passing" not in line and "damaged" in line] in (
        [],
        [line for line in said.splitlines() if line.endswith(": 1 damaged")],
    )


def test_a_pipe_in_a_run_is_not_waited_for(run: RunFolder) -> None:
    os.mkfifo(run.path / "pipe")
    done("report", run.path)
    assert done("verify", run.path).out


def test_hashes_that_are_gone_are_said(run: RunFolder) -> None:
    (run.path / SUMS).unlink()
    assert f"{SUMS}: gone" in anomaly("verify", run.path).out


def test_a_record_that_says_something_else_is_said(run: RunFolder) -> None:
    for path in (run.log, run.training_metrics):
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b'"step": 40', b'"step": 41').replace(b'"score"', b'"scone"')
        )
        assert f"{path.name}: " in anomaly("verify", run.path).out
        assert anomaly("verify", run.path).code == 1
        path.write_bytes(content)
    assert done("verify", run.path).out


def test_a_reading_that_is_no_text_is_damage(run: RunFolder) -> None:
    with sqlite3.connect(run.feedback) as connection:
        connection.execute("UPDATE feedback SET reader = NULL")
    connection.close()
    assert "entry 1 of" in anomaly("verify", run.path).out


def test_who_reads_while_flags_are_raised_anew_finds_rows(road: Road, tmp_path: Path) -> None:
    """`score --alpha` writes parts that are there again."""
    run = RunFolder(Path(shutil.copytree(road.run.path, tmp_path / "run")))
    rows, provenance = run.results.read()
    ended = threading.Event()

    def restate() -> None:
        while not ended.is_set():
            run.results.restate(0, [row for row in rows], provenance)

    writer = threading.Thread(target=restate)
    writer.start()
    try:
        for _ in range(200):
            assert run.results.rows(0) == rows
    finally:
        ended.set()
        writer.join()
    assert run.results.is_intact(0)
    assert len(run.results.checksums(0).read_text().splitlines()) == 2


def test_the_outcome_of_a_look_can_differ(run: RunFolder) -> None:
    """Or the tests above could not fail."""
    intact = look(run.path)
    assert isinstance(intact, Outcome)
    done("feedback", run.path, run.results.read()[0][1].key, "disagree")
    assert look(run.path).results != intact.results
