"""The spool: what is acknowledged is there, what is not is gone, whenever the process ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from anomaly.errors import AnomalyError
from anomaly.files import temporary_name
from anomaly.pacs.node.batches import PASSING, Arrival, Batch, Received, State
from anomaly.pacs.node.layout import file_name
from anomaly.pacs.node.rebuild import read_stored
from anomaly.pacs.node.spool import Spool

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def open_spool(
    folder: Path, clock: Clock | None = None, most: int = 100, room: int = 10**6
) -> Spool:
    return Spool(folder, max_instances=most, max_bytes=room, clock=clock or Clock())


def arrival(instance: str, study: str = "1", content: bytes = b"content") -> Arrival:
    return Arrival(instance, study, content, hashlib.sha256(content).hexdigest())


def files(folder: Path, pattern: str = "*") -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob(pattern) if path.is_file())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path, clock: Clock) -> Iterator[Spool]:
    with open_spool(tmp_path / "node", clock) as spool:
        yield spool


def close(spool: Spool) -> Batch:
    """Make a batch of the one study that there is."""
    assert spool.close_quiet(0) == 1
    return spool.batches(State.CLOSED)[-1]


def test_an_instance_is_kept_as_it_came(spool: Spool) -> None:
    assert spool.receive(arrival("1.1", content=b"a")) is Received.STORED
    assert spool.receive(arrival("1.2", content=b"b")) is Received.STORED
    assert files(spool.folder / "spool") == [b"a", b"b"]
    assert spool.waiting == 2


def test_the_same_again_changes_nothing(spool: Spool) -> None:
    spool.receive(arrival("1.1", content=b"a"))
    assert spool.receive(arrival("1.1", content=b"a")) is Received.AGAIN
    assert spool.waiting == 1
    spool.begin(close(spool))
    assert spool.receive(arrival("1.1", content=b"a")) is Received.AGAIN  # of a batch, by now
    assert files(spool.folder / "spool") == []


def test_other_content_is_a_conflict_and_counted(spool: Spool) -> None:
    spool.receive(arrival("1.1", content=b"a"))
    assert spool.receive(arrival("1.1", content=b"b")) is Received.CONFLICT
    assert files(spool.folder / "spool") == [b"a"]
    assert spool.refused == {Received.CONFLICT: 1}


def test_a_full_queue_writes_nothing(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node", most=2) as spool:
        said = [spool.receive(arrival(f"1.{i}")) for i in range(4)]
        assert said == [Received.STORED] * 2 + [Received.FULL] * 2
        assert spool.receive(arrival("1.1")) is Received.AGAIN  # takes no room
        assert len(files(spool.folder / "spool")) == spool.waiting == 2
        batch = close(spool)
        spool.begin(batch)
        spool.scored(batch, outcomes(batch), [])
        assert spool.receive(arrival("1.8")) is Received.FULL  # scored, not sent
        spool.kept(batch)
        assert spool.receive(arrival("1.8")) is Received.STORED


def outcomes(batch: Batch) -> dict[str, str]:
    return {path.name: "scored" for path in batch.scans.iterdir()}


def test_a_full_disk_writes_nothing_until_scans_are_sent(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node", room=10) as spool:
        assert spool.receive(arrival("1.1", content=b"123456")) is Received.STORED
        assert spool.receive(arrival("1.2", content=b"12345")) is Received.FULL
        assert spool.receive(arrival("1.3", content=b"1234")) is Received.STORED
        batch = close(spool)
        spool.begin(batch)
        spool.scored(batch, outcomes(batch), [])
        assert spool.receive(arrival("1.2", content=b"12345")) is Received.FULL
        spool.sent(batch)
        assert not batch.scans.exists()
        assert spool.receive(arrival("1.2", content=b"12345")) is Received.STORED


def test_scans_that_are_kept_count_until_their_owner_removes_them(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node", room=10) as spool:
        spool.receive(arrival("1.1", content=b"123456"))
        batch = close(spool)
        spool.begin(batch)
        spool.scored(batch, outcomes(batch), [])
        spool.kept(batch)
        assert spool.receive(arrival("1.2", content=b"12345")) is Received.FULL
    for path in batch.scans.iterdir():
        path.unlink()
    batch.scans.rmdir()
    with open_spool(tmp_path / "node", room=10) as spool:
        assert spool.receive(arrival("1.2", content=b"12345")) is Received.STORED


def test_a_study_is_complete_when_nothing_came_for_it(spool: Spool, clock: Clock) -> None:
    spool.receive(arrival("1.1", "1"))
    clock.now = 6
    spool.receive(arrival("2.1", "2"))
    assert spool.close_quiet(10) == 0
    clock.now = 10
    assert spool.close_quiet(10) == 1  # the first
    spool.receive(arrival("2.2", "2"))
    clock.now = 16
    assert spool.close_quiet(10) == 0  # the second was heard of at 10
    clock.now = 20
    assert spool.close_quiet(10) == 1
    assert [spool.begin(batch) for batch in spool.batches(State.CLOSED)] == [1, 2]


def test_what_comes_late_is_a_further_batch(spool: Spool) -> None:
    spool.receive(arrival("1.1", content=b"a"))
    first = close(spool)
    spool.receive(arrival("1.2", content=b"b"))
    second = close(spool)
    assert (first.number, second.number) == (1, 2)
    assert (spool.begin(first), spool.begin(second)) == (1, 1)
    assert (files(first.scans), files(second.scans)) == ([b"a"], [b"b"])


def test_the_way_of_a_batch_is_recorded(spool: Spool) -> None:
    spool.receive(arrival("1.1"))
    spool.receive(arrival("1.2", content=b"not a scan"))
    batch = close(spool)
    assert batch.attempts == 0
    spool.begin(batch)
    names = {path.read_bytes(): path.name for path in batch.scans.iterdir()}
    said = {names[b"content"]: "scored", names[b"not a scan"]: "unreadable"}
    written = batch.folder / "run" / "report.dcm"
    spool.scored(batch, said, [written])
    assert spool.batches(State.CLOSED) == []
    (scored,) = spool.batches(State.SCORED)
    assert (scored.objects, scored.attempts) == ((written,), 0)  # the attempt came back
    spool.kept(scored)
    assert spool.batches(State.SCORED) == []
    assert spool.waiting == 0
    rows = sqlite3.connect(spool.folder / "node.sqlite").execute(
        "SELECT uid, outcome, state FROM instances JOIN batches ON batch = number ORDER BY uid"
    )
    assert rows.fetchall() == [("1.1", "scored", "kept"), ("1.2", "unreadable", "kept")]


def test_a_batch_that_was_tried_waits_behind_others(spool: Spool) -> None:
    for study in ("1", "2"):
        spool.receive(arrival(f"{study}.1", study))
        close(spool)
    spool.begin(spool.batches(State.CLOSED)[0])
    assert [batch.number for batch in spool.batches(State.CLOSED)] == [2, 1]


def test_a_failed_batch_is_tried_again_by_the_next_start(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        spool.begin(batch)
        spool.failed(batch, "the bundle is damaged")
        assert spool.batches(State.CLOSED) == []
        assert spool.waiting == 0
    with open_spool(tmp_path / "node") as spool:
        (again,) = spool.batches(State.CLOSED)
        assert (again.number, again.attempts, spool.waiting) == (1, 1, 1)


def test_an_attempt_that_came_back_does_not_count(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        spool.begin(batch)
        assert spool.batches(State.CLOSED)[0].attempts == 1
        spool.returned(batch)
        assert spool.batches(State.CLOSED)[0].attempts == 0
        spool.begin(batch)  # and here the process ends
    with open_spool(tmp_path / "node") as spool:
        assert spool.batches(State.CLOSED)[0].attempts == 1


def score(spool: Spool, batch: Batch, reason: str = "scored") -> None:
    spool.begin(batch)
    spool.scored(batch, dict.fromkeys(outcomes(batch), reason), [])


@pytest.mark.parametrize("reason", PASSING)
def test_what_may_be_scored_by_another_try_is_kept_and_received_anew(
    tmp_path: Path, reason: str
) -> None:
    with open_spool(tmp_path / "node", room=10) as spool:
        for number in range(3):
            spool.receive(arrival(f"1.{number}", content=b"%d" % number))
        batch = close(spool)
        spool.begin(batch)
        said = outcomes(batch)
        (passing,) = (path for path in batch.scans.iterdir() if path.read_bytes() == b"1")
        (damaged,) = (path for path in batch.scans.iterdir() if path.read_bytes() == b"2")
        spool.scored(batch, {**said, passing.name: reason, damaged.name: "truncated"}, [])
        assert spool.sent(batch) == 1
        assert files(batch.scans) == [b"1"]
        assert spool.waiting == 0
    with open_spool(tmp_path / "node", room=10) as spool:
        assert files(batch.scans) == [b"1"]
        assert spool.receive(arrival("9.9", content=bytes(10))) is Received.FULL  # it takes room
        assert spool.receive(arrival("1.0", content=b"0")) is Received.AGAIN
        assert spool.receive(arrival("1.2", content=b"2")) is Received.AGAIN
        assert spool.receive(arrival("1.1", content=b"x")) is Received.CONFLICT
        assert spool.receive(arrival("1.1", content=b"1")) is Received.STORED
        assert spool.receive(arrival("1.1", content=b"1")) is Received.AGAIN  # is on its way
        assert spool.waiting == 1
        assert files(spool.folder / "spool") == [b"1"]
        assert files(batch.scans) == []
        again = close(spool)
        score(spool, again)
        assert spool.sent(again) == 0
        assert spool.receive(arrival("1.1", content=b"1")) is Received.AGAIN
        assert spool.receive(arrival("9.9", content=bytes(10))) is Received.STORED


def test_an_instance_of_a_batch_that_failed_is_received_anew(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        spool.begin(batch)
        assert spool.receive(arrival("1.1")) is Received.AGAIN  # in work
        spool.failed(batch, "no memory")
        assert spool.receive(arrival("1.1")) is Received.STORED
        assert files(batch.scans) == []
    with open_spool(tmp_path / "node") as spool:
        assert spool.batches(State.CLOSED) == []  # nothing is left in the first
        assert close(spool).number == 2
        assert spool.waiting == 1


def run_of(batch: Batch) -> Path:
    """Write what scoring leaves: 9 bytes that name nobody, and 600 that may."""
    (batch.folder / "run" / "parts").mkdir(parents=True)
    (batch.folder / "run" / "dicom").mkdir()
    for name, size in (("scores.csv", 4), ("run.jsonl", 5), ("manifest.parquet", 100)):
        (batch.folder / "run" / name).write_bytes(bytes(size))
    (batch.folder / "run" / "parts" / "maps-00000.npz").write_bytes(bytes(200))
    (batch.folder / "run" / "dicom" / "1.dcm").write_bytes(bytes(300))
    return batch.folder / "run"


@pytest.mark.parametrize("killed", [False, True])
def test_of_a_batch_that_is_delivered_a_record_is_left(tmp_path: Path, killed: bool) -> None:
    with open_spool(tmp_path / "node", room=700) as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        run = run_of(batch)
        score(spool, batch)
        assert spool.receive(arrival("1.2", content=bytes(100))) is Received.FULL
        spool.sent(batch)
        assert spool.receive(arrival("1.2", content=bytes(100))) is Received.STORED
    if killed:  # between the record and the removal
        (run / "dicom").mkdir()
        (run / "dicom" / "1.dcm").write_bytes(b"left")
    with open_spool(tmp_path / "node"):
        assert sorted(path.name for path in batch.folder.rglob("*")) == [
            "run",
            "run.jsonl",
            "scores.csv",
        ]


def test_results_that_are_kept_take_room_until_their_owner_removes_them(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node", room=700) as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        run = run_of(batch)
        score(spool, batch)
        spool.kept(batch)
    with open_spool(tmp_path / "node", room=700) as spool:
        assert len(files(run)) == 5
        # 7 bytes of the scan and 609 of the run
        assert spool.receive(arrival("1.2", content=bytes(85))) is Received.FULL
        assert spool.receive(arrival("1.2", content=bytes(84))) is Received.STORED
    shutil.rmtree(run)
    with open_spool(tmp_path / "node", room=700) as spool:
        assert spool.receive(arrival("1.3", content=bytes(609))) is Received.STORED


def test_what_is_not_delivered_does_not_wait_and_is_tried_by_the_next_start(
    tmp_path: Path,
) -> None:
    with open_spool(tmp_path / "node", most=1) as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        score(spool, batch)
        assert spool.receive(arrival("1.2")) is Received.FULL
        spool.undelivered(batch, "it refuses 1 of 1")
        assert (spool.batches(State.SCORED), spool.waiting) == ([], 0)
        assert spool.receive(arrival("1.2")) is Received.STORED
    with open_spool(tmp_path / "node", most=1) as spool:
        (again,) = spool.batches(State.SCORED)
        assert (again.number, again.reason, spool.waiting) == (1, "it refuses 1 of 1", 1)
        assert len(files(again.scans)) == 1


def test_files_that_nothing_is_known_of_are_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(arrival("1.1", content=b"acknowledged"))
    name = hashlib.sha256(b"1.2").hexdigest()[:40] + ".dcm"
    unfinished = temporary_name(tmp_path / "node/spool" / name)
    for _ in range(2):
        (tmp_path / "node/spool" / name).write_bytes(b"no instance")
        unfinished.write_bytes(b"killed while it was being written")
        with open_spool(tmp_path / "node") as spool:
            assert files(spool.folder / "spool") == [b"acknowledged"]
            assert spool.waiting == 1
        assert "1 files that are no instances were moved to unknown/" in caplog.text
        caplog.clear()
    with open_spool(tmp_path / "node") as spool:
        assert spool.receive(arrival("1.2")) is Received.STORED
    assert caplog.text == ""
    assert files(tmp_path / "node/unknown") == [b"no instance"] * 2


def instance(uid: str, study: str = "1.5") -> Arrival:
    """Write the file of an instance as the listener does."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", uid
    dataset.StudyInstanceUID = study
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return read_stored(file.getvalue())


def test_a_file_gets_its_row_back_and_is_the_same_when_it_comes_again(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        assert spool.receive(instance("1.1")) is Received.STORED
    (tmp_path / "node/node.sqlite").unlink()
    with open_spool(tmp_path / "node") as spool:
        assert (spool.waiting, spool.receive(instance("1.1"))) == (1, Received.AGAIN)
        assert spool.receive(instance("1.1", study="1.6")) is Received.CONFLICT
        assert spool.begin(close(spool)) == 1


def test_a_file_under_another_instances_name_is_set_aside(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node"):
        pass
    stray = tmp_path / "node/spool" / file_name("1.2")
    content = instance("1.1").content
    assert isinstance(content, bytes)
    stray.write_bytes(content)
    with open_spool(tmp_path / "node") as spool:
        assert spool.waiting == 0
    assert (tmp_path / "node/unknown" / stray.name).exists()


def test_an_acknowledged_instance_whose_file_is_gone_is_received_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(instance("1.1"))
        spool.begin(close(spool))
        spool.receive(instance("2.1", study="2.5"))
    for path in (tmp_path / "node").rglob("*.dcm"):
        path.unlink()
    with open_spool(tmp_path / "node") as spool:
        assert "2 instances that waited are not on the disk" in caplog.text
        assert (spool.waiting, spool.batches(State.CLOSED)) == (0, [])
        (batch,) = spool.batches(State.FAILED)
        assert batch.reason == "its scans are not on the disk"
        assert spool.receive(instance("1.1")) is Received.STORED
        assert spool.receive(instance("2.1", study="2.5")) is Received.STORED


def test_a_page_of_the_database_that_is_damaged_is_said_before_anything_is_done(
    tmp_path: Path,
) -> None:
    with open_spool(tmp_path / "node") as spool:
        for index in range(100):
            spool.receive(arrival(f"1.{index}"))
    database = tmp_path / "node/node.sqlite"
    content = bytearray(database.read_bytes())
    content[4096:8192] = bytes(range(256)) * 16  # the second page, of 4,096 bytes
    database.write_bytes(content)
    with pytest.raises(AnomalyError, match=r"cannot be used .* Move it out of the folder"):
        open_spool(tmp_path / "node")
    assert len(files(tmp_path / "node/spool")) == 100


def test_quiet_time_begins_anew_at_the_start(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(arrival("1.1"))
    clock = Clock()
    clock.now = 1000
    with open_spool(tmp_path / "node", clock) as spool:
        clock.now = 1009
        assert spool.close_quiet(10) == 0
        clock.now = 1010
        assert spool.close_quiet(10) == 1


def test_gathering_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        for index in range(3):
            spool.receive(arrival(f"1.{index}", content=b"%d" % index))
        batch = close(spool)
        # Killed when one of three had been moved.
        batch.scans.mkdir(parents=True)
        first = sorted((spool.folder / "spool").iterdir())[0]
        first.rename(batch.scans / first.name)
    with open_spool(tmp_path / "node") as spool:
        assert spool.begin(batch) == 3
        assert files(batch.scans) == [b"0", b"1", b"2"]


def test_scans_of_a_batch_that_was_sent_are_removed_by_the_next_start(tmp_path: Path) -> None:
    with open_spool(tmp_path / "node") as spool:
        spool.receive(arrival("1.1"))
        batch = close(spool)
        spool.begin(batch)
        spool.scored(batch, outcomes(batch), [])
        spool.sent(batch)
    batch.scans.mkdir()  # killed between the record and the removal
    (batch.scans / file_name("1.1")).write_bytes(b"left")
    with open_spool(tmp_path / "node"):
        assert not batch.scans.exists()


def test_a_second_node_is_refused(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(AnomalyError, match="another node works in"):
        open_spool(spool.folder)
    with open_spool(tmp_path / "other"):  # which is free
        pass


def test_all_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    spool = open_spool(tmp_path / "open")
    spool.receive(arrival("1.1"))
    spool.begin(close(spool))
    spool.receive(arrival("2.1", "2"))
    everything = [spool.folder, *spool.folder.rglob("*")]
    assert len(everything) >= 9
    for path in everything:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path.relative_to(spool.folder)
    spool.__exit__()


def test_a_folder_of_others_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(AnomalyError, match=r"open holds other things .* \(mode 755\)"):
        open_spool(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    folder.chmod(0o700)
    open_spool(folder).__exit__()
    folder.chmod(0o750)  # a node's by now, and whom its owner lets in is for them to say
    open_spool(folder).__exit__()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_database_of_another_version_is_said_so(tmp_path: Path) -> None:
    open_spool(tmp_path / "node").__exit__()
    database = sqlite3.connect(tmp_path / "node" / "node.sqlite")
    database.execute("PRAGMA user_version = 77")
    database.close()
    with pytest.raises(AnomalyError, match="it is of version 77, not 1"):
        open_spool(tmp_path / "node")


def test_no_text_from_the_network_is_in_a_path(spool: Spool) -> None:
    spool.receive(arrival("../../escape", "../study"))
    (path,) = (spool.folder / "spool").iterdir()
    assert path.name == hashlib.sha256(b"../../escape").hexdigest()[:40] + ".dcm"


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    """A real limit of the system: no file of this process may be longer than 100 kB."""
    script = """if True:
        import resource, signal, sys
        from pathlib import Path
        from anomaly.pacs.node.batches import Arrival
        from anomaly.pacs.node.spool import Spool
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Spool(Path(sys.argv[1]), max_instances=9, max_bytes=10**9) as spool:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                spool.receive(Arrival("1.1", "1", bytes(200_000), "x"))
            except OSError:
                assert spool.waiting == 0
                assert list((spool.folder / "spool").iterdir()) == []
                sys.exit(7)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "node")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr


def test_a_database_that_is_none_is_said_so(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    (folder / "node.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(AnomalyError, match=r"node\.sqlite cannot be used"):
        open_spool(folder)
    (folder / "node.sqlite").unlink()
    with open_spool(folder):  # the lock was given back
        pass
