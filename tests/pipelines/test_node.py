"""The node: what it acknowledged is scored once and sent once, whenever it is killed."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydicom import dcmread

from anomaly.config import Config
from anomaly.data.readers.isolation import Workers
from anomaly.errors import AnomalyError, ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.pacs.client.destinations import Destination
from anomaly.pacs.node.batches import Arrival, Received, State
from anomaly.pacs.node.listener import Listener
from anomaly.pacs.node.scoring_queue import ATTEMPTS, PAUSES
from anomaly.pacs.node.spool import Spool
from anomaly.pipelines.node import (
    BatchScorer,
    NodeLoop,
    NodeSettings,
    Objects,
    load_settings,
    run_node,
)
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle, write_bundle
from anomaly.store.bundle_files import find_bundle
from tests.data.dicom_samples import write_sample
from tests.pipelines.node_here import Dying, Folder, one_object_a_row
from tests.pipelines.node_senders import Node, store, storm, uid_of, write_studies
from tests.pipelines.road import Road, anomaly, refused

NODE_YAML = Path(__file__).parents[2] / "docs" / "node.yaml"
CPU = torch.device("cpu")

needs_dcmtk = pytest.mark.skipif(
    shutil.which("storescu") is None, reason="needs DCMTK's storescu (Debian: dcmtk)"
)


# --- as a process, with senders that are not ours -------------------------------------------------


@needs_dcmtk
def test_a_node_that_is_killed_loses_nothing_and_does_nothing_twice(
    road: Road, tmp_path: Path
) -> None:
    studies = write_studies(tmp_path / "scans", 6, 5)
    node = Node(tmp_path, bundle=str(road.run.bundle), quiet_seconds=0.5)
    done = storm(node, studies, kills=2, pause=1.0, seed=1)
    expected = sorted(uid_of(study, index) for study in range(6) for index in range(5))
    assert len(done.kills) == 2
    assert done.acknowledged == {path for files in studies for path in files}
    assert sorted(node.scored(expected).elements()) == expected
    assert node.sent() == expected
    outcomes = node.ask(
        "SELECT DISTINCT outcome, state FROM instances JOIN batches ON batch = number"
    )
    assert outcomes == [("scored", "sent")]
    # A kill between storing and its record repeats it, and no other: at most one batch a kill.
    again = sum(times - 1 for times in node.asked().values())
    assert again <= sum(states["scored"] for states in done.kills)
    left = {path.name for path in node.folder.glob("batches/*/*/*")}
    assert left == {"run.jsonl", "scores.csv"}
    said = node.log.read_text()
    assert not any(uid in said for uid in expected)
    assert "CANARY" not in said
    assert str(tmp_path) not in said


@needs_dcmtk
def test_a_node_that_is_killed_and_loses_its_database_scores_all_once(
    road: Road, tmp_path: Path
) -> None:
    studies = write_studies(tmp_path / "scans", 6, 5)
    node = Node(tmp_path, bundle=str(road.run.bundle), quiet_seconds=0.5)
    done = storm(node, studies, kills=2, pause=1.0, seed=2, lose_database=True)
    expected = sorted(uid_of(study, index) for study in range(6) for index in range(5))
    assert done.acknowledged == {path for files in studies for path in files}
    assert sorted(node.scored(expected).elements()) == expected
    assert node.sent() == expected


@needs_dcmtk
def test_the_life_of_a_node(road: Road, tmp_path: Path) -> None:
    (files,) = write_studies(tmp_path / "scans", 1, 3)
    node = Node(tmp_path, bundle=str(road.run.bundle), quiet_seconds=0.3)
    node.start()
    try:
        settings = replace(load_settings(tmp_path / "node.yaml"), port=0, destination="")
        with pytest.raises(AnomalyError, match="another node works in"):
            run_node(settings, CPU, objects=one_object_a_row)
        away = node.destination / "away"
        away.touch()
        assert set(store(node.port, files[:2]).values()) == {"Success"}
        node.wait_until(scored=2)
        node.wait_for("cannot be sent (AnomalyError)")
        assert set(store(node.port, files[2:]).values()) == {"Success"}  # it goes on receiving
        node.wait_until(scored=3)  # and scoring
        away.unlink()
        node.wait_until(sent=3)
    finally:
        assert node.stop() == 0
    assert node.log.read_text().rstrip().endswith("stopped; 0 instances wait")
    assert node.sent() == sorted(uid_of(0, index) for index in range(3))
    assert len(list((node.folder / "batches").iterdir())) == 2


# --- in this process, a step at a time --------------------------------------------------------


@dataclass
class Here:
    """A node without a listener."""

    settings: NodeSettings
    spool: Spool
    files: list[list[Path]]
    objects: Objects = one_object_a_row
    destination: Destination | None = None
    processes: Workers = field(default_factory=lambda: Workers(0))
    now: float = 0.0
    said: list[Received] = field(default_factory=list)

    def receive(self, *paths: Path) -> None:
        for path in paths:
            dataset, content = dcmread(path), path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            uids = str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID)
            self.said.append(self.spool.receive(Arrival(*uids, content, digest)))

    def begin(self) -> NodeLoop:
        scorer = BatchScorer(self.settings, CPU, self.objects, self.processes)
        quiet = self.settings.quiet_seconds
        return NodeLoop(self.spool, scorer, self.destination, quiet, lambda: self.now)

    def work(self) -> None:
        """Do all that there is to do; where it rests, wait for half an hour in all."""
        work, end = self.begin(), self.now + 1800
        while work.step() or self.now < end:
            self.now += 30

    def ask(self, question: str) -> list[tuple[object, ...]]:
        database = sqlite3.connect(self.spool.folder / "node.sqlite")
        try:
            return database.execute(question).fetchall()
        finally:
            database.close()

    def states(self) -> list[str]:
        return [str(state) for (state,) in self.ask("SELECT state FROM batches ORDER BY number")]

    def restart(self) -> None:
        """Open the folder anew, as after a kill."""
        self.spool.__exit__()
        self.spool = open_spool(self.settings)


def open_spool(settings: NodeSettings) -> Spool:
    return Spool(settings.folder, max_instances=100, max_bytes=10**8)


@pytest.fixture
def here(road: Road, tmp_path: Path) -> Iterator[Here]:
    settings = NodeSettings(
        bundle=road.run.bundle, folder=tmp_path / "node", quiet_seconds=1e-9, alpha=0.2
    )
    files = write_studies(tmp_path / "scans", 3, 2)
    (tmp_path / "sent").mkdir()
    there = Here(settings, open_spool(settings), files, destination=Folder(tmp_path / "sent"))
    yield there
    there.spool.__exit__()


def sent(here: Here) -> Counter[str]:
    assert isinstance(here.destination, Folder)
    return Counter(path.read_text().strip() for path in here.destination.path.glob("*.txt"))


def asked(here: Here) -> list[int]:
    """How often the destination was asked for each object."""
    assert isinstance(here.destination, Folder)
    log = here.destination.path / "asked.log"
    return sorted(Counter(log.read_text().split()).values()) if log.exists() else []


def test_a_batch_is_an_ordinary_run(here: Here) -> None:
    here.destination = None  # so that all of it is kept
    here.receive(*here.files[0])
    here.work()
    run = RunFolder(here.settings.folder / "batches" / "000001" / "run")
    rows, provenance = run.results.read()
    assert [row.status for row in rows] == ["scored"] * 2
    assert provenance.alpha == 0.2  # the node's, not the bundle's
    assert provenance.bundle == read_bundle(here.settings.bundle).hash
    # One copy of the bundle and one key for all runs.
    (copy,) = (here.settings.folder / "bundles").iterdir()
    assert run.bundle.resolve() == copy
    here.receive(*here.files[1])
    here.work()
    other = RunFolder(here.settings.folder / "batches" / "000002" / "run")
    assert other.site_key.read_text() == run.site_key.read_text()
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_of_a_run_that_is_delivered_the_scores_are_left(here: Here) -> None:
    here.receive(*here.files[0], *here.files[1])
    here.work()
    assert sent(here) == {uid_of(study, index): 1 for study in (0, 1) for index in (0, 1)}
    for number in (1, 2):
        batch = here.settings.folder / "batches" / f"{number:06d}"
        left = sorted(path.relative_to(batch).as_posix() for path in batch.rglob("*"))
        assert left == ["run", "run/run.jsonl", "run/scores.csv"]
        said = "".join(path.read_text() for path in (batch / "run").iterdir())
        assert said.count("scored") >= 2
        assert uid_of(number - 1, 0) not in said
        assert "CANARY" not in said
        assert str(here.settings.folder) not in said


def test_without_a_destination_results_and_scans_are_kept(here: Here) -> None:
    here.destination = None
    here.receive(*here.files[0])
    here.work()
    assert here.states() == ["kept"]
    (batch,) = (here.settings.folder / "batches").iterdir()
    assert len(list((batch / "scans").iterdir())) == 2
    assert len(list((batch / "run" / "objects").iterdir())) == 2


def test_files_that_cannot_be_scored_are_outcomes_and_no_failures(here: Here) -> None:
    study = str(dcmread(here.files[0][0]).StudyInstanceUID)
    here.receive(*here.files[0])
    here.spool.receive(Arrival("9.9", study, b"not a scan at all", "x"))
    here.objects = lambda _run, _config, _processes: []
    here.work()
    assert here.states() == ["sent"]
    database = sqlite3.connect(here.spool.folder / "node.sqlite")
    outcomes = dict(database.execute("SELECT uid, outcome FROM instances").fetchall())
    database.close()
    assert outcomes.pop("9.9") not in ("scored", "", None)
    assert outcomes == {uid_of(0, 0): "scored", uid_of(0, 1): "scored"}


def test_an_instance_of_too_many_frames_holds_up_nobody(here: Here, tmp_path: Path) -> None:
    study = str(dcmread(here.files[0][0]).StudyInstanceUID)
    frames = np.arange(1001 * 16, dtype=np.uint16).reshape(1001, 4, 4) % 4096
    write_sample(tmp_path / "long", frames, kind="ECT", StudyInstanceUID=study)
    here.receive(*here.files[0], tmp_path / "long")
    here.objects = lambda _run, _config, _processes: []
    here.work()
    outcomes = here.ask("SELECT outcome, count(*) FROM instances GROUP BY outcome")
    assert sorted(outcomes) == [("scored", 2), ("too many frames", 1)]


@pytest.mark.parametrize("error", [AnomalyError("as expected"), RuntimeError("of another library")])
def test_a_batch_that_fails_does_not_keep_the_next(
    here: Here, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fails_once(run: RunFolder, config: Config, processes: Workers) -> list[Path]:
        if run.path.parent.name == "000001":
            raise error
        return one_object_a_row(run, config, processes)

    here.objects = fails_once
    here.receive(*here.files[0])
    here.work()
    here.receive(*here.files[1], *here.files[2])
    here.work()
    assert here.states() == ["failed", "sent", "sent"]
    assert f"batch 1 is given up ({type(error).__name__})" in caplog.text
    assert str(error) not in caplog.text  # it may quote a scan
    assert set(sent(here)) == {uid_of(study, index) for study in (1, 2) for index in (0, 1)}
    here.objects = one_object_a_row  # what was wrong has been put right
    here.restart()
    here.work()
    assert here.states() == ["sent"] * 3
    assert set(sent(here).values()) == set(asked(here)) == {1}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("moment", ["before scoring", "cut short", "before the record", "sending"])
def test_a_kill_at_any_moment_is_made_good(
    here: Here, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.receive(*here.files[0])

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before scoring":
            patch.setattr("anomaly.pipelines.node.choose_scans", die)
        elif moment in ("before the record", "cut short"):
            patch.setattr(here.spool, "scored", die)
        else:
            patch.setattr(here.spool, "sent", die)
        with pytest.raises(Killed):
            here.work()
    if moment == "cut short":
        run = RunFolder(here.settings.folder / "batches" / "000001" / "run")
        run.config.write_text("")
        run.results.finished.unlink()
    here.restart()
    here.work()
    assert here.states() == ["sent"]
    assert sent(here) == {uid_of(0, 0): 1, uid_of(0, 1): 1}
    assert asked(here) == [2, 2] if moment == "sending" else [1, 1]
    scores = RunFolder(here.settings.folder / "batches" / "000001" / "run").scores_csv
    assert len(set(scores.read_text().splitlines())) == 1 + 2


def bring_to(here: Here, moment: str) -> Here:
    """Receive a study and work on it until a moment of its life; return the node as it is then."""
    here.receive(*here.files[0])
    if moment == "kept":
        here = replace(here, settings=replace(here.settings, destination=""), destination=None)
    if moment == "gathered":
        here.spool.close_quiet(0)
        here.spool.begin(here.spool.batches(State.CLOSED)[-1])
    elif moment == "scored":
        work = here.begin()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work._delivery, "send_next", lambda: False)
            while work.step():
                pass
    elif moment != "received":
        here.work()
    return here


def read_database(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("node.sqlite*")}


def put_back(here: Here, database: dict[str, bytes]) -> None:
    """Start the node again with another copy of its database."""
    here.spool.__exit__()
    for name in read_database(here.settings.folder):
        (here.settings.folder / name).unlink()
    for name, content in database.items():
        (here.settings.folder / name).write_bytes(content)
    here.spool = open_spool(here.settings)


@pytest.mark.parametrize("lost", ["all of it", "its write-ahead log", "what came since the copy"])
@pytest.mark.parametrize("moment", ["received", "gathered", "scored", "sent", "kept"])
def test_a_database_that_is_lost_costs_no_acknowledged_instance(
    here: Here, moment: str, lost: str
) -> None:
    uids = {uid_of(0, 0): 1, uid_of(0, 1): 1}
    left: dict[str, bytes] = {}
    if lost == "what came since the copy":
        here.receive(*here.files[1])
        uids |= {uid_of(1, 0): 1, uid_of(1, 1): 1}
        left = read_database(here.settings.folder)
    here = bring_to(here, moment)
    if lost == "its write-ahead log":
        left = {"node.sqlite": (here.settings.folder / "node.sqlite").read_bytes()}
    put_back(here, left)
    here.work()
    scores = [
        line.split(",")[0]
        for batch in sorted((here.settings.folder / "batches").iterdir())
        for line in RunFolder(batch / "run").scores_csv.read_text().splitlines()[1:]
    ]
    assert len(scores) == len(set(scores)) == len(uids)
    assert not (here.settings.folder / "unknown").exists()
    assert set(here.states()) == {"kept" if moment == "kept" else "sent"}
    if moment == "kept":
        assert len(list(here.settings.folder.glob("batches/*/scans/*"))) == len(uids)
    else:
        assert sent(here) == uids


def test_after_a_lost_database_a_new_study_gets_a_number_of_its_own(here: Here) -> None:
    bring_to(here, "sent")
    record = (here.settings.folder / "batches/000001/run/scores.csv").read_bytes()
    put_back(here, {})
    bring_to(replace(here, files=here.files[1:]), "sent")
    assert (here.settings.folder / "batches/000001/run/scores.csv").read_bytes() == record
    assert here.states() == ["sent", "sent"]


def test_a_batch_that_ends_the_process_every_time_is_given_up(here: Here) -> None:
    here.receive(*here.files[0])
    here.spool.close_quiet(0)
    for _ in range(ATTEMPTS):
        here.spool.begin(here.spool.batches(State.CLOSED)[0])
    here.work()
    assert here.states() == ["failed"]
    ((reason,),) = here.ask("SELECT reason FROM batches")
    assert str(reason).startswith(f"AnomalyError: scoring ended the process {ATTEMPTS} times")


def test_scoring_that_fails_is_tried_again_behind_the_others(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[tuple[float, str]] = []
    away = [True]

    def fails_for_a_while(run: RunFolder, config: Config, processes: Workers) -> list[Path]:
        number = run.path.parent.name
        if not tried or tried[-1] != (here.now, number):  # begun anew, in the same try
            tried.append((here.now, number))
        if number == "000001" and away[0]:
            raise OSError("no memory for a patient's name")
        return one_object_a_row(run, config, processes)

    here.objects = fails_for_a_while
    here.receive(*here.files[0], *here.files[1])
    work = here.begin()
    for second in range(100):
        here.now = float(second)
        away[0] = second < 60
        work.step()
    assert tried == [
        (0.0, "000001"),
        (1.0, "000002"),
        (PAUSES[0], "000001"),
        (PAUSES[0] + PAUSES[1], "000001"),
    ]
    assert here.states() == ["sent", "sent"]
    assert here.ask("SELECT attempts FROM batches") == [(0,), (0,)]
    assert "batch 1 cannot be scored (OSError); again in 10 s" in caplog.text
    assert "patient" not in caplog.text


def test_scoring_that_always_fails_never_counts_as_a_process_that_ended(here: Here) -> None:
    def fails(_run: RunFolder, _config: Config, _processes: Workers) -> list[Path]:
        raise ArchiveError("full", "there is no room")

    here.objects = fails
    here.receive(*here.files[0])
    for _ in range(ATTEMPTS // len(PAUSES) + 1):
        here.work()
        here.restart()
    here.work()
    assert here.states() == ["failed"]
    assert here.ask("SELECT attempts, reason FROM batches") == [
        (0, "ArchiveError: there is no room")
    ]


def test_a_decoder_that_dies_costs_neither_the_scan_nor_its_resend(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    here.objects = lambda _run, _config, _processes: []
    caplog.set_level("INFO")
    scans = here.settings.folder / "batches" / "000001" / "scans"
    with Dying(1) as here.processes:
        here.receive(*here.files[0])
        here.work()
    assert here.states() == ["sent"]
    assert here.ask("SELECT DISTINCT outcome FROM instances") == [("decoder crashed",)]
    assert len(list(scans.iterdir())) == 2
    assert "2 scans of batch 1 are kept" in caplog.text
    here.processes, here.objects = Workers(0), one_object_a_row
    here.restart()
    here.receive(*here.files[0], *here.files[0])
    assert here.said[2:] == [Received.STORED] * 2 + [Received.AGAIN] * 2
    assert not list(scans.iterdir())
    here.work()
    assert here.states() == ["sent", "sent"]
    assert here.ask("SELECT DISTINCT outcome, batch FROM instances") == [("scored", 2)]
    assert sent(here) == {uid_of(0, 0): 1, uid_of(0, 1): 1}


@needs_dcmtk
def test_a_database_that_is_away_is_waited_for_and_said_to_who_sends(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    work = here.begin()
    first, second = here.files[0]
    database = sqlite3.connect(here.spool.folder / "node.sqlite")
    with Listener(here.spool, ae_title="ANOMALY", host="127.0.0.1", port=0, allowed=()) as listener:
        assert store(listener.port, [first]) == {first: "Success"}
        for table in ("instances", "batches"):
            database.execute(f"ALTER TABLE {table} RENAME TO away")
            assert not work.step()
            here.now += 0.5
            assert not work.step()  # it rests
            assert store(listener.port, [second]) == {second: "Refused: OutOfResources"}
            database.execute(f"ALTER TABLE away RENAME TO {table}")
            here.now += 10
        here.work()
        assert store(listener.port, [second]) == {second: "Success"}
        here.work()
    database.close()
    said = "the folder of the node cannot be used (OperationalError); again in"
    assert [line.partition(said)[2] for line in caplog.messages if said in line] == [" 1 s", " 2 s"]
    assert here.states() == ["sent", "sent"]
    assert sent(here) == {uid_of(0, 0): 1, uid_of(0, 1): 1}


def test_another_bundle_takes_over_what_is_not_scored(here: Here, tmp_path: Path) -> None:
    before = read_bundle(here.settings.bundle).hash
    here.receive(*here.files[0])

    def die(_run: RunFolder, _config: Config, _processes: Workers) -> list[Path]:
        raise Killed

    here.objects, objects = die, here.objects
    with pytest.raises(Killed):
        here.work()
    here.objects = objects
    shipped = find_bundle(Path("zhanglab"))
    here.settings = replace(here.settings, bundle=shipped, alpha=None)
    here.destination = None
    here.restart()
    here.work()
    run = RunFolder(here.settings.folder / "batches" / "000001" / "run")
    assert here.states() == ["kept"]
    assert run.results.provenance().bundle == read_bundle(shipped).hash != before
    hashes = {read_bundle(copy).hash for copy in (here.settings.folder / "bundles").iterdir()}
    assert hashes == {before, read_bundle(shipped).hash}  # neither is changed


@dataclass
class Picky:
    """A destination that never takes the objects of one batch."""

    refused: str
    stored: list[str] = field(default_factory=list)

    def store(self, paths: Sequence[Path]) -> None:
        number = paths[0].parents[2].name
        self.stored.append(number)
        if number == self.refused:
            raise AnomalyError("the archive refuses it")


def test_a_batch_that_is_refused_does_not_keep_the_next_from_being_sent(here: Here) -> None:
    clock = [0.0]
    picky = Picky("000001")
    here.receive(*here.files[0], *here.files[1])
    scorer = BatchScorer(here.settings, CPU, one_object_a_row, Workers(0))
    work = NodeLoop(here.spool, scorer, picky, here.settings.quiet_seconds, lambda: clock[0])
    moments = []
    for second in range(24):
        clock[0] = second / 2
        before = len(picky.stored)
        work.step()
        moments += [(clock[0], number) for number in picky.stored[before:]]
    # Refused at 0.0, so 1 s of rest; then the other one, which ends the rest; then 1, 2, 4 s.
    assert [number for _, number in moments[:2]] == ["000001", "000002"]
    refusals = [moment for moment, number in moments if number == "000001"]
    assert refusals == [0.0, 1.5, 2.5, 4.5, 8.5]
    assert here.states() == ["scored", "sent"]


@dataclass
class Refusing:
    """A destination that fails as it is told, until it is mended."""

    error: Exception
    asked: int = 0
    is_mended: bool = False

    def store(self, paths: Sequence[Path]) -> None:
        self.asked += 1
        if not self.is_mended:
            raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ArchiveUnreachable("no answer", "pacs.example is away"), "no answer"),
        (RuntimeError("pacs.example"), "RuntimeError"),
        (AttributeError("pacs.example"), "AttributeError"),
    ],
)
def test_trouble_with_the_destination_is_waited_for(
    here: Here, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    here.destination = refusing = Refusing(error)
    here.receive(*here.files[0])
    here.work()
    assert refusing.asked > 5
    assert here.states() == ["scored"]
    assert f"batch 1 cannot be sent ({said}); again in 1 s" in caplog.text
    assert "pacs.example" not in caplog.text
    refusing.is_mended = True
    here.work()
    assert here.states() == ["sent"]


def test_a_batch_that_is_refused_for_good_is_kept_and_tried_once_by_each_start(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    here.destination = refusing = Refusing(ArchiveError("HTTP 409", "pacs.example refuses it"))
    here.receive(*here.files[0])
    here.work()
    assert refusing.asked == 5
    assert here.states() == ["undelivered"]
    assert here.spool.waiting == 0
    assert here.ask("SELECT reason FROM batches") == [("pacs.example refuses it",)]
    assert caplog.text.count("batch 1 is refused for good (HTTP 409)") == 1
    assert "pacs.example" not in caplog.text
    here.restart()
    here.work()
    assert (refusing.asked, here.states()) == (6, ["undelivered"])
    assert len(list(here.settings.folder.glob("batches/000001/run/objects/*"))) == 2
    refusing.is_mended = True
    here.restart()
    here.work()
    assert (refusing.asked, here.states()) == (7, ["sent"])


# --- settings -----------------------------------------------------------------------------------


def test_the_example_is_what_the_defaults_are(tmp_path: Path) -> None:
    settings = load_settings(NODE_YAML)
    assert settings == NodeSettings(bundle=Path("zhanglab"), folder=Path("runs/node"))
    written = {line.split(":")[0] for line in NODE_YAML.read_text().splitlines() if line[0] != "#"}
    assert written == set(NodeSettings.__dataclass_fields__) - {"alpha"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"quiet_second": 3},
            "unknown configuration key quiet_second: did you mean quiet_seconds?",
        ),
        ({"port": 70_000}, "port is 70000: expected 0 to 65535"),
        ({"max_instances": 0}, "max_instances is 0: expected more than 0"),
        ({"alpha": 1.5}, "alpha is 1.5: expected a rate"),
        ({"objects": ["overlays"]}, "objects holds 'overlays': expected some of report"),
        ({"allowed": "FRIEND"}, "allowed is 'FRIEND'"),
        ({"bundle": None}, "bundle is None"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump({"bundle": "zhanglab", "folder": "node", **change}))
    assert said in refused("node", path)


def test_a_destination_that_is_not_there_is_refused_before_listening(tmp_path: Path) -> None:
    settings = NodeSettings(bundle=Path("zhanglab"), folder=tmp_path / "n", destination="nowhere")
    with pytest.raises(ConfigError, match="destination is 'nowhere'"):
        run_node(settings, CPU, objects=one_object_a_row)
    assert not (tmp_path / "n").exists()


def test_a_missing_bundle_is_refused_before_listening(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump({"bundle": "nothing", "folder": str(tmp_path / "n")}))
    assert "nothing" in refused("node", path)


def test_a_bundle_that_promises_nothing_is_refused_before_listening(
    road: Road, tmp_path: Path
) -> None:
    bundle = read_bundle(road.run.bundle)
    assert bundle.calibrated is not None
    scans = len(bundle.calibrated.scores.scores)
    plain = tmp_path / "plain"
    write_bundle(replace(bundle, calibrated=None), plain)
    for changed, said in (
        ({"bundle": str(plain)}, "this bundle is not calibrated"),
        ({"bundle": str(road.run.bundle), "alpha": 1e-6}, f"{scans} calibration scans cannot"),
    ):
        path = tmp_path / "node.yaml"
        path.write_text(yaml.safe_dump({"folder": str(tmp_path / "n"), **changed}))
        assert said in refused("node", path)
        assert not (tmp_path / "n").exists()


def test_the_command_says_what_it_does() -> None:
    assert "Listen for scans by DICOM" in " ".join(anomaly("node", "--help").out.split())
