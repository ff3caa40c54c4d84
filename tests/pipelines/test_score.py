"""Scoring in shards: whose turn, what is done, and everything that can go wrong on the way."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import ConfigError
from anomaly.pipelines.run import RunFolder
from anomaly.scoring.leases import Leases
from anomaly.scoring.shards import Shard, ShardAssignment, cut
from anomaly.store.results import ScoreRow
from tests.pipelines.road import Road, copy, done, refused

ROOT = Path(__file__).parents[2]
SHARD = ("--set", "results.shard=5")


def rows(count: int) -> list[ManifestRow]:
    return [
        ManifestRow(key=f"{i:012x}", path=f"{i}.dcm", frame=0, sha256=str(i)) for i in range(count)
    ]


# --- whose turn -------------------------------------------------------------------------------


def test_shards_are_all_rows_in_order() -> None:
    shards = cut(rows(12), 5)
    assert [s.index for s in shards] == [0, 1, 2]
    assert [len(s.rows) for s in shards] == [5, 5, 2]
    assert [row for s in shards for row in s.rows] == rows(12)
    assert cut([], 5) == []


def test_inputs_are_named_by_content_not_by_path() -> None:
    one = Shard(0, tuple(rows(2)))
    moved = Shard(3, tuple(replace(r, path="x") for r in rows(2)))
    assert moved.inputs == one.inputs
    for name in ("key", "sha256", "status", "reason", "study", "patient", "site"):
        change: dict[str, Any] = {name: "other"}
        other = Shard(0, (rows(2)[0], replace(rows(2)[1], **change)))
        assert other.inputs != one.inputs, name


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_turns_share_out_all_shards_and_helpers_go_on_with_the_rest(of: int) -> None:
    shards = cut(rows(20), 2)
    mine = [ShardAssignment.parse(f"{i}/{of}").order(shards) for i in range(1, of + 1)]
    assert sorted(s.index for part in mine for s in part) == list(range(10))
    for number in range(of):
        helping = ShardAssignment(number, of).order(shards)
        assert sorted(s.index for s in helping) == list(range(10))
        assert helping[: len(mine[number])] == mine[number]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard is"):
        ShardAssignment.parse(text)


@pytest.mark.parametrize(
    ("environment", "turn"),
    [
        ({}, ShardAssignment()),
        ({"RANK": "2", "WORLD_SIZE": "4"}, ShardAssignment(2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "9",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            ShardAssignment(3, 5),  # 1, 3, 5, 7, 9
        ),
    ],
)
def test_torchrun_and_slurm_say_whose_turn_it_is(
    environment: dict[str, str], turn: ShardAssignment
) -> None:
    assert ShardAssignment.of_environment(environment) == turn


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}],
)
def test_variables_that_contradict_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--shard i/n"):
        ShardAssignment.of_environment(environment)


# --- an archive -------------------------------------------------------------------------------


def archive_of(road: Road, folder: Path) -> Path:
    """20 readable scans and three files that are none."""
    folder.mkdir()
    for number, path in enumerate(sorted(road.scans.rglob("*.dcm"))[:20]):
        shutil.copy(path, folder / f"{number:02d}.dcm")
    (folder / "cut.dcm").write_bytes((folder / "00.dcm").read_bytes()[:2000])
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "note.txt").write_text("not a scan")
    return folder


@pytest.fixture(scope="module")
def scored(road: Road, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Score the archive in one go, one process, in shards of five."""
    root = tmp_path_factory.mktemp("scored")
    run = RunFolder(root / "run")
    scans = archive_of(road, root / "scans")
    done("score", scans, "--bundle", road.run.bundle, "--out", run.path, *SHARD)
    return run


@pytest.fixture
def fresh(scored: RunFolder, tmp_path: Path) -> RunFolder:
    """Return the same run, of which nothing is scored yet."""
    run = copy(scored, tmp_path / "run")
    shutil.rmtree(run.results.folder)
    run.scores_csv.unlink()
    return run


def litter(run: RunFolder) -> set[str]:
    kinds = ("part-{:05d}.parquet", "part-{:05d}.sha256", "maps-{:05d}.npz")
    parts = {kind.format(index) for kind in kinds for index in range(5)}
    known = parts | {"job.json", "finished.json", "worklist.parquet"}
    return {path.name for path in run.results.folder.iterdir()} - known


def test_every_file_is_one_row_in_the_order_of_the_table(scored: RunFolder) -> None:
    listed = Manifest.read(scored.manifest).rows
    found, made_of = scored.results.read()
    assert len(found) == len(listed) == 23
    assert sorted(r.key for r in found) == sorted(r.key for r in listed)
    assert sorted(r.reason for r in found if r.status != "scored") == sorted(
        r.reason for r in listed if r.status != "ok"
    )
    assert made_of.parts == 5
    assert litter(scored) == set()
    with scored.scores_csv.open(newline="") as file:
        assert [line["key"] for line in csv.DictReader(file)] == [row.key for row in found]


def test_studies_and_patients_are_pseudonyms_that_group(scored: RunFolder) -> None:
    listed = {r.key: r for r in Manifest.read(scored.manifest).rows if r.status == "ok"}
    found = [r for r in scored.results.read()[0] if r.status == "scored"]
    for name in ("study", "patient"):
        pairs = {(getattr(listed[r.key], name), getattr(r, name)) for r in found}
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) > 1
        assert all(len(b) == 16 and b != a for a, b in pairs)


def test_shares_make_the_same_parts_as_one_process(scored: RunFolder, fresh: RunFolder) -> None:
    done("score", fresh.path, *SHARD, "--shard", "2/2")
    assert fresh.results.done() == [1, 3]
    assert not fresh.scores_csv.exists()
    done("score", fresh.path, *SHARD, "--shard", "1/2")
    assert fresh.results.read()[0] == scored.results.read()[0]
    assert fresh.scores_csv.exists()


def test_what_is_done_is_not_done_again(fresh: RunFolder) -> None:
    done("score", fresh.path, *SHARD)
    before = {i: fresh.results.part(i).stat().st_ino for i in range(5)}
    fresh.results.part(2).unlink()
    done("score", fresh.path, *SHARD)
    after = {i: fresh.results.part(i).stat().st_ino for i in range(5)}
    assert [i for i in range(5) if after[i] != before[i]] in ([2], [])  # a number may come again
    assert {after[i] == before[i] for i in (0, 1, 3, 4)} == {True}


def test_other_settings_make_every_part_again(fresh: RunFolder) -> None:
    done("score", fresh.path, *SHARD)
    done("score", fresh.path, *SHARD, "--set", "alpha=0.5")
    found, made_of = fresh.results.read()
    assert made_of.alpha == 0.5
    assert all(r.flagged == (r.p_value <= 0.5) for r in found if r.p_value is not None)
    done("score", fresh.path, "--set", "results.shard=100")
    assert fresh.results.provenance().parts == 1
    assert litter(fresh) == set()
    assert not fresh.results.part(3).exists()


@pytest.mark.parametrize("sampled", [0.0, 0.4])
def test_maps_are_kept_of_flagged_scans_and_of_a_sample(fresh: RunFolder, sampled: float) -> None:
    settings = ["results.maps=flagged", f"results.sampled={sampled}", "alpha=0.3"]
    done("score", fresh.path, *SHARD, *(a for s in settings for a in ("--set", s)))
    found = [r for r in fresh.results.read()[0] if r.status == "scored"]
    for row in found:
        wanted = bool(row.flagged) or int(row.key[:8], 16) / 16**8 < sampled
        assert (fresh.results.evidence(row) is not None) == wanted
    assert 0 < sum(row.map_part is not None for row in found) < len(found)
    done("report", fresh.path)
    assert all(row.key in fresh.report.read_text(encoding="utf-8") for row in found)


# --- what can go wrong ------------------------------------------------------------------------


def command(run: RunFolder) -> list[str]:
    return [sys.executable, "-m", "anomaly", "score", str(run.path), *SHARD]


def test_killed_again_and_again_nothing_is_lost_or_twice(
    scored: RunFolder, fresh: RunFolder
) -> None:
    rng = random.Random(0)  # noqa: S311
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        workers = [
            subprocess.Popen(command(fresh), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
            for _ in range(2)
        ]
        # Not before they work, or nothing is there to be torn.
        deadline = time.monotonic() + 120
        while not list(fresh.results.folder.glob("*.lease")) and time.monotonic() < deadline:
            if all(worker.poll() is not None for worker in workers):
                break
            time.sleep(0.01)
        assert list(fresh.results.folder.glob("*.lease"))
        time.sleep(rng.uniform(0, 0.3))
        for worker in workers:
            worker.kill()
            worker.wait()
    done("score", fresh.path, *SHARD)
    assert fresh.results.read()[0] == scored.results.read()[0]
    assert litter(fresh) == set()


def test_processes_that_finish_together_all_end_well(scored: RunFolder, fresh: RunFolder) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(command(fresh), cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for worker in workers:
        _, said = worker.communicate()
        assert worker.returncode == 0, said
    assert fresh.results.read()[0] == scored.results.read()[0]
    assert litter(fresh) == set()
    with fresh.scores_csv.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 23
    recorded = (fresh.path / "run.jsonl").read_text().count('"stage": "score"')
    assert recorded == 2  # the copied run's, and once for all three


def test_another_order_of_scans_makes_every_part_again(fresh: RunFolder) -> None:
    done("score", fresh.path, *SHARD)
    listed = Manifest.read(fresh.manifest)
    Manifest(listed.root, (*listed.rows[1:], listed.rows[0])).write(fresh.manifest)
    done("score", fresh.path, *SHARD, "--shard", "1/2")
    assert fresh.results.done() == [0, 2, 4]


def test_the_same_command_goes_on_with_the_list_that_it_made(
    scored: RunFolder, fresh: RunFolder, road: Road
) -> None:
    scans = Manifest.read(fresh.manifest).root
    options = ["--bundle", road.run.bundle, "--out", fresh.path, *SHARD]
    done("score", scans, *options, "--shard", "1/2")
    before = {i: fresh.results.part(i).stat().st_mtime_ns for i in fresh.results.done()}
    listed = fresh.manifest.stat().st_mtime_ns
    done("score", scans, *options)
    assert fresh.manifest.stat().st_mtime_ns == listed
    after = {i: fresh.results.part(i).stat().st_mtime_ns for i in fresh.results.done()}
    assert before.items() <= after.items()
    assert fresh.results.read()[0] == scored.results.read()[0]
    # Once all is done, the folder is listed again: there may be new scans.
    done("score", scans, *options)
    assert fresh.manifest.stat().st_mtime_ns > listed


def test_a_full_disk_is_one_sentence_and_costs_one_part(
    scored: RunFolder, fresh: RunFolder
) -> None:
    # Every file that the process writes may have so many bytes and no more.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "from anomaly.pipelines.__main__ import main; sys.argv = ['anomaly', *sys.argv[1:]]; main()"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, "score", str(fresh.path), *SHARD],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 1, said.stderr
    last = said.stderr.strip().splitlines()[-1]
    assert "error: " in last
    assert "could not be written" in last
    assert "Traceback" not in said.stderr
    assert litter(fresh) == set()
    done("score", fresh.path, *SHARD)
    assert fresh.results.read()[0] == scored.results.read()[0]


def test_an_archive_that_goes_away_half_way_is_not_an_archive_of_missing_scans(
    scored: RunFolder, fresh: RunFolder, tmp_path: Path
) -> None:
    scans = Manifest.read(fresh.manifest).root
    done("score", fresh.path, *SHARD, "--shard", "1/2")
    away = tmp_path / "away"
    shutil.move(scans, away)
    try:
        scans.mkdir()  # a mount point stays
        message = refused("score", fresh.path, *SHARD)
        assert "is the archive mounted?" in message
        assert fresh.results.done() == [0, 2, 4]
        scans.rmdir()
    finally:
        shutil.move(away, scans)
    done("score", fresh.path, *SHARD)
    assert fresh.results.read()[0] == scored.results.read()[0]


def test_one_file_that_goes_away_costs_one_row(scored: RunFolder, fresh: RunFolder) -> None:
    listed = Manifest.read(fresh.manifest)
    (gone,) = [row for row in listed.rows if row.path == "07.dcm"]
    hidden = listed.root / ".07.dcm"
    (listed.root / gone.path).rename(hidden)
    try:
        done("score", fresh.path, *SHARD)
    finally:
        hidden.rename(listed.root / gone.path)
    expected = {r.key: r for r in scored.results.read()[0]}
    for row in fresh.results.read()[0]:
        if row.key == gone.key:
            assert (row.status, row.score) == ("not scored", None)
            reason = row.reason
        else:
            assert (row.status, row.reason) == (expected[row.key].status, expected[row.key].reason)
    done("retry", fresh.path, "--reason", reason)
    done("score", fresh.path, *SHARD)
    assert fresh.results.read()[0] == scored.results.read()[0]


def test_two_runs_with_different_settings_do_not_mix(fresh: RunFolder) -> None:
    done("score", fresh.path, *SHARD, "--shard", "1/2")
    lease = Leases().claim(fresh.results.lease(1))
    assert lease is not None
    with lease:
        message = refused("score", fresh.path, *SHARD, "--set", "alpha=0.5")
        assert "another run is scoring into" in message
        assert fresh.results.provenance().alpha == 0.1
        assert fresh.results.done() == [0, 2, 4]
    done("score", fresh.path, *SHARD, "--set", "alpha=0.5")
    assert fresh.results.read()[1].alpha == 0.5


def test_a_folder_that_cannot_be_written_is_one_sentence(fresh: RunFolder) -> None:
    fresh.results.folder.write_text("a file in its place")
    assert str(fresh.results.folder) in refused("score", fresh.path, *SHARD)


def test_a_part_that_is_lost_later_is_made_again(scored: RunFolder, fresh: RunFolder) -> None:
    done("score", fresh.path, *SHARD)
    fresh.results.part(2).unlink()
    assert done("status", fresh.path).out.startswith("4 of 5 parts done")
    assert done("query", fresh.path, "SELECT count(*) FROM worklist").out.split()[-1] == "18"
    fresh.scores_csv.write_text("of before")
    done("score", fresh.path, *SHARD)
    assert fresh.results.read()[0] == scored.results.read()[0]
    assert fresh.scores_csv.read_bytes() == scored.scores_csv.read_bytes()
    assert done("query", fresh.path, "SELECT count(*) FROM worklist").out.split()[-1] == "23"


def test_shares_and_ray_are_refused_together(fresh: RunFolder) -> None:
    message = refused("score", fresh.path, *SHARD, "--ray", "2", "--shard", "1/2")
    assert "--shard has no effect here: --ray deals out all shards" in message


# --- how far it is ----------------------------------------------------------------------------


def test_status_counts_parts_rows_and_reasons(fresh: RunFolder, road: Road) -> None:
    assert "run `anomaly score` first" in refused("status", fresh.path)
    done("score", fresh.path, *SHARD, "--shard", "1/2")
    lines = done("status", fresh.path).out.splitlines()
    assert lines[0] == "3 of 5 parts done, 0 in work"
    assert "left" in lines[-1]
    done("score", fresh.path, *SHARD)
    lines = done("status", fresh.path).out.splitlines()
    assert lines[:2] == ["5 of 5 parts done, 0 in work", "23 scans: 20 scored, 3 not scored"]
    reasons = [r.reason for r in fresh.results.read()[0] if r.reason]
    assert sorted(lines[2:]) == sorted(f"  {reasons.count(r)} {r}" for r in set(reasons))


def test_a_query_prints_csv(scored: RunFolder) -> None:
    sql = "SELECT key, score FROM scores WHERE status = 'scored' ORDER BY score DESC LIMIT 3"
    table = list(csv.DictReader(io.StringIO(done("query", scored.path, sql).out)))
    best = sorted(
        (r for r in scored.results.read()[0] if r.score is not None), key=lambda r: -(r.score or 0)
    )
    assert [line["key"] for line in table] == [r.key for r in best[:3]]
    assert [float(line["score"]) for line in table] == [r.score for r in best[:3]]
    assert done("query", scored.path, "SELECT * FROM scores").out.count("nll") == 2 * 20
    assert "refused" in refused("query", scored.path, "SELECT nothing FROM scores")


def test_retry_of_an_unknown_reason_names_the_known_ones(scored: RunFolder) -> None:
    message = refused("retry", scored.path, "--reason", "weather")
    known = {r.reason for r in scored.results.read()[0]} - {""}
    assert all(repr(reason) in message for reason in known)
    assert len(scored.results.done()) == 5


def test_a_row_says_nothing_but_what_is_documented() -> None:
    assert set(ScoreRow("k", "scored").__dict__) == {
        *("key", "status", "reason", "score", "p_value", "flagged", "evidence_peak", "seen"),
        *(
            "regions",
            "view",
            "site",
            "study",
            "patient",
            "map_part",
            "features",
            "part",
            "explanation",
        ),
    }


# --- what is not judged -----------------------------------------------------------------------


def test_a_negative_and_a_wrong_view_are_not_scored(road: Road, tmp_path: Path) -> None:
    """Neither is "normal": one shows the scan inverted, the other is of something else."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, path in enumerate(sorted(road.scans.rglob("*.dcm"))[:4]):
        dataset = pydicom.dcmread(path)
        if number == 1:
            other = {"MONOCHROME1": "MONOCHROME2", "MONOCHROME2": "MONOCHROME1"}
            dataset.PhotometricInterpretation = other[dataset.PhotometricInterpretation]
            dataset.PresentationLUTShape = "IDENTITY"
        if number == 2:
            dataset.ViewPosition = "LL"
        dataset.save_as(folder / f"{number}")
    run = tmp_path / "run"
    bundle = ("--bundle", road.run.bundle, "--set", "gate.views=[PA, AP]")
    done("score", folder, *bundle, "--out", run)
    rows = RunFolder(run).results.read()[0]
    names = {row.key: row.path for row in Manifest.read(RunFolder(run).manifest).rows}
    said = {names[row.key]: (row.status, row.reason, row.flagged) for row in rows}
    assert said["1"] == ("not scored", "inverted", None)
    assert said["2"] == ("not scored", "view", None)
    assert {said[name][0] for name in ("0", "3")} == {"scored"}


@pytest.mark.parametrize("setting", ["intensity.voi=file", "preprocessing.size=24"])
def test_another_grey_than_was_learned_is_refused(road: Road, tmp_path: Path, setting: str) -> None:
    said = refused(
        *("score", road.scans, "--bundle", road.run.bundle, "--out", tmp_path / "run"),
        *("--set", setting),
    )
    assert f"{setting.partition('=')[0]} is {setting.partition('=')[2]}, there " in said


def test_scans_in_a_zip_score_as_they_do_in_a_folder(road: Road, tmp_path: Path) -> None:
    paths = sorted(road.scans.rglob("*.dcm"))[:5]
    (tmp_path / "zipped").mkdir()
    (tmp_path / "plain").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(paths):
            archive.write(path, f"IM{number}")
            shutil.copy(path, tmp_path / "plain" / f"IM{number}")
    scores = []
    for name in ("zipped", "plain"):
        run = RunFolder(tmp_path / f"run-{name}")
        run.path.mkdir()
        shutil.copy(road.run.site_key, run.site_key)  # the same pseudonyms
        done("score", tmp_path / name, "--bundle", road.run.bundle, "--out", run.path)
        rows = run.results.read()[0]
        scores.append([(row.key, row.status, row.score, row.p_value) for row in rows])
    assert scores[0] == scores[1]
    assert len(scores[0]) == 5
