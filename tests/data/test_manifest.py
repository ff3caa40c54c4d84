"""The manifest: one row a scan, a reason for every other file, and disjoint splits."""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import generate_uid

from anomaly.data.images.transforms import Preprocessing
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import Lost, Workers, map_in_processes
from anomaly.data.table import pseudonyms
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import (
    Manifest,
    ManifestRow,
    pixel_hash,
    prove_disjoint,
    scan_marks,
)
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.data.table.splits import SPLITS, assign_splits
from anomaly.errors import ConfigError, ManifestError, Reason
from tests.data.dicom_samples import (
    Trap,
    leave_behind,
    make_dataset,
    misbehave,
    tell_pid,
    write_dicom,
    write_sample,
)

ROOT = Path(__file__).parents[2]
KEY = b"k" * 32
LABELS = {"normal": ["normal/*"], "lesion": ["*/lesion*", "lesion/*"]}
EVEN = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}


def build(
    root: Path,
    *,
    labels: Mapping[str, Sequence[str]] = LABELS,
    workers: int = 0,
    seconds: float = 120,
    progress: Callable[[int, int], None] | None = None,
    site_key: bytes = KEY,
    **options: Any,
) -> Manifest:
    inspection = Inspection(root, IntensityPolicy(), site_key, **options)
    with Workers(workers, seconds) as processes:
        return build_manifest(inspection, PathNames(labels), processes=processes, progress=progress)


def png(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (5, 4)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def row(key: str, patient: str, label: str = "normal", **values: Any) -> ManifestRow:
    return ManifestRow(
        key, f"{key}.dcm", 0, sha256=f"sha-{key}", patient=patient, label=label, **values
    )


# --- rows -------------------------------------------------------------------------------------


def test_a_dicom_row(tmp_path: Path) -> None:
    (tmp_path / "normal").mkdir()
    dataset = make_dataset([[0, 1, 2]], patient="P9", ViewPosition="PA", PixelSpacing=[0.2, 0.1])
    path = write_dicom(tmp_path / "normal" / "a", dataset)
    manifest = build(tmp_path)
    uid = dataset.SOPInstanceUID
    expected = ManifestRow(
        key=hmac.new(KEY, f"{uid}/0".encode(), hashlib.sha256).hexdigest()[:16],
        path="normal/a",
        frame=0,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        kind="dicom",
        patient="P9",
        study=dataset.StudyInstanceUID,
        series=dataset.SeriesInstanceUID,
        instance=uid,
        modality="DX",
        view="PA",
        rows=1,
        columns=3,
        levels=4096,
        spacing_row=0.2,
        spacing_column=0.1,
        spacing_source="PixelSpacing",
        pixels=pixel_hash(np.array([[0, 1, 2]], dtype=np.float32) / np.float32(4095)),
        label="normal",
    )
    assert manifest.rows == (expected,)


def test_every_file_has_a_row_and_unusable_ones_a_reason(tmp_path: Path) -> None:
    png(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"no")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "link.dcm").symlink_to("nowhere")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    manifest = build(tmp_path)
    assert [(r.path, r.status, r.reason) for r in manifest.rows] == [
        ("a/bad.png", "skipped", "undecodable"),
        ("a/good.png", "ok", ""),
        ("link.dcm", "skipped", "unreadable"),
        ("notes.txt", "skipped", "not an image"),
    ]
    assert all(r.detail.endswith(".") for r in manifest.select(status="skipped"))
    assert len({r.key for r in manifest.rows}) == 4


def test_slices_are_rows_and_a_bad_slice_costs_itself(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.int16).reshape(2, 2, 3)
    values[..., 1] = 5
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    rows = build(tmp_path).rows
    assert [(r.frame, r.reason) for r in rows] == [(0, ""), (1, "constant"), (2, "")]
    assert len({r.key for r in rows}) == 3
    assert rows[0].instance == rows[0].sha256
    assert rows[0].patient == f"file:{rows[0].sha256}"


def test_first_matching_label_wins(tmp_path: Path) -> None:
    for number, name in enumerate(["normal/lesion1.png", "lesion/x/y.png", "other/a.png"]):
        png(tmp_path / name, number)
    labels = {r.path: r.label for r in build(tmp_path).rows}
    assert labels == {"normal/lesion1.png": "normal", "lesion/x/y.png": "lesion", "other/a.png": ""}


def test_patient_from_the_file_name(tmp_path: Path) -> None:
    png(tmp_path / "77" / "00012_003.png", 0)
    png(tmp_path / "00013-001.png", 1)
    rows = build(tmp_path, patient_pattern=r"(\d+)_").rows
    assert [(r.patient, r.reason) for r in rows] == [("", "no patient"), ("00012", "")]
    assert [r.patient for r in build(tmp_path, patient_pattern=r"\d+").rows] == ["00013", "00012"]


def test_dicom_patient_wins_then_pattern_then_study(tmp_path: Path) -> None:
    write_sample(tmp_path / "a1", [[0, 1]], patient="P1")
    write_sample(tmp_path / "a2", [[0, 2]], patient="", StudyInstanceUID="1.2.3")
    found = [r.patient for r in build(tmp_path, patient_pattern="a.").rows]
    assert found == ["P1", "a2"]
    assert [r.patient for r in build(tmp_path).rows] == ["P1", "study:1.2.3"]


def test_wrong_pattern_is_a_setting_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="regular expression"):
        build(tmp_path, patient_pattern="(")


def test_empty_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no files; expected scans"):
        build(tmp_path)
    with pytest.raises(ManifestError, match="not a folder"):
        build(tmp_path / "nowhere")


def test_identical_content_twice(tmp_path: Path) -> None:
    png(tmp_path / "lesion" / "a.png")
    png(tmp_path / "normal" / "b.png")
    first, second = build(tmp_path).rows
    assert (first.status, second.status, second.reason) == ("ok", "skipped", "duplicate")
    assert "lesion/a.png" in second.detail
    assert "'lesion' there, 'normal' here" in second.detail


def test_duplicate_sop_instance_uid_with_other_content(tmp_path: Path) -> None:
    uid = generate_uid()
    write_sample(tmp_path / "a", [[0, 1]], SOPInstanceUID=uid)
    write_sample(tmp_path / "b", [[0, 2]], SOPInstanceUID=uid)
    first, second = build(tmp_path).rows
    assert (first.reason, second.reason) == ("", "duplicate")
    assert "other content" in second.detail


def test_key_collision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "a.png", 0)
    png(tmp_path / "b.png", 1)
    monkeypatch.setattr(pseudonyms, "_DIGITS", 0)
    with pytest.raises(ManifestError, match="same key"):
        build(tmp_path)


def test_workers_give_the_same_rows_and_progress(tmp_path: Path) -> None:
    for number in range(5):
        png(tmp_path / f"{number}.png", number)
    (tmp_path / "z.dcm").write_bytes(b"")
    seen: list[tuple[int, int]] = []
    parallel = build(tmp_path, workers=2, progress=lambda *done: seen.append(done))
    assert parallel == build(tmp_path)
    assert seen == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_or_hangs_costs_its_own_item(workers: int) -> None:
    items = [7, 5, 13, 6, 7, 8]
    results = list(map_in_processes(misbehave, items, workers, seconds=2))
    crashed, timed_out = Lost(Reason.DECODER_CRASHED), Lost(Reason.DECODER_TIMED_OUT)
    assert results == [(7, crashed), (5, 25), (13, timed_out), (6, 36), (7, crashed), (8, 64)]


def test_idle_workers_that_are_killed_are_replaced(tmp_path: Path) -> None:
    names = tmp_path / "pid"
    with Workers(1) as workers:
        list(workers.map(tell_pid, [str(names)]))
        os.kill(int(names.read_text()), signal.SIGKILL)  # as a system short of memory does
        time.sleep(1)
        assert list(workers.map(misbehave, [2, 3])) == [(2, 4), (3, 9)]


def test_what_a_worker_raises_passes_through() -> None:
    with pytest.raises(ValueError, match="eleven"):
        list(map_in_processes(misbehave, [1, 11], 1))


def test_a_worker_asks_for_terabytes_in_vain(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    (only,) = build(tmp_path, gate=Trap(kind="memory"), workers=1).rows
    assert (only.status, only.reason) == ("skipped", "out of memory")


@pytest.mark.parametrize(
    ("trap", "reason"), [("crash", "decoder crashed"), ("hang", "decoder timed out")]
)
def test_a_lost_file_becomes_a_row(tmp_path: Path, trap: str, reason: str) -> None:
    png(tmp_path / "a.png")
    (only,) = build(tmp_path, gate=Trap(kind=trap), workers=1, seconds=4).rows
    assert (only.status, only.reason) == ("skipped", reason)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_name_that_is_no_text_is_a_row(tmp_path: Path, workers: int) -> None:
    (tmp_path / "scans").mkdir()
    png(tmp_path / "scans" / "a.png")
    odd = os.fsencode(tmp_path / "scans") + b"/R\xf6ntgen.png"
    Path(os.fsdecode(odd)).write_bytes((tmp_path / "scans" / "a.png").read_bytes())
    manifest = build(tmp_path / "scans", workers=workers)
    manifest.write(tmp_path / "m.parquet")
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert sorted((row.path, row.reason) for row in rows) == [
        ("R\\xf6ntgen.png", "file name"),
        ("a.png", ""),
    ]


def test_what_a_lost_process_unpacked_is_removed(tmp_path: Path) -> None:
    with Workers(1, seconds=2) as workers:
        results = [result for _, result in workers.map(leave_behind, ["first", "hang", "last"])]
        assert results[1] == Lost(Reason.DECODER_TIMED_OUT)
        assert isinstance(results[0], str)
        assert isinstance(results[2], str)
        assert not Path(results[0]).exists()  # of the process that was ended
        assert Path(results[2]).exists()
    assert not Path(results[2]).exists()


def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    names = tmp_path / "pids"
    script = (
        "import os, signal\n"
        "from dicom_samples import tell_pid\n"
        "from anomaly.data.readers.isolation import Workers\n"
        "if __name__ == '__main__':\n"
        f"    next(Workers(1).map(tell_pid, [{str(names)!r}]))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "main.py").write_text(script)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/data")])
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"],
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (pid,) = map(int, names.read_text().split())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


# --- on disk ----------------------------------------------------------------------------------


def test_write_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    write_sample(tmp_path / "scans" / "a", [[0, 1]])
    (tmp_path / "scans" / "b.txt").write_text("x")
    manifest = build(tmp_path / "scans")
    path = tmp_path / "manifest.parquet"
    path.write_text("old")
    old_mask = os.umask(0)
    try:
        manifest.write(path)
    finally:
        os.umask(old_mask)
    assert Manifest.read(path) == manifest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.parquet", "scans"]
    assert Manifest.read(path, root=tmp_path).root == tmp_path


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.parquet"
    path.write_text("old")

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        Manifest(tmp_path, (row("a", "p"),)).write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.parquet"]
    assert path.read_text() == "old"


def test_what_is_not_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    path.write_text("no")
    with pytest.raises(ManifestError, match="parquet"):
        Manifest.read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ManifestError, match="columns"):
        Manifest.read(path)


def test_read_proves_disjoint(tmp_path: Path) -> None:
    rows = (row("a", "p", split="train"), row("b", "p", split="test"))
    Manifest(tmp_path, rows).write(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="1 patient"):
        Manifest.read(tmp_path / "m.parquet")


def test_hash_depends_on_content_and_splits_only(tmp_path: Path) -> None:
    a, b = row("a", "p", split="train"), row("b", "q", split="test")
    one = Manifest(tmp_path, (a, b)).hash
    moved = Manifest(Path("elsewhere"), (replace(b, path="x", key="y"), a))
    assert moved.hash == one
    for change in ({"split": "test"}, {"label": "other"}, {"sha256": "other"}, {"frame": 1}):
        assert Manifest(tmp_path, (replace(a, **change), b)).hash != one


def test_select_and_counts(tmp_path: Path) -> None:
    rows = (
        row("a", "p", split="train"),
        row("b", "q", split="test"),
        row("c", "r", "lesion", split="test"),
        row("d", "s").skipped(Reason.CONSTANT, "same grey."),
    )
    manifest = Manifest(tmp_path, rows)
    assert manifest.select(split="test") == rows[1:3]
    assert manifest.select(split="test", label="lesion") == rows[2:3]
    assert manifest.select() == rows[:3]
    assert manifest.select(status="skipped") == rows[3:]
    assert manifest.select(status=None) == rows
    assert manifest.counts() == {
        ("", "normal", "constant"): 1,
        ("test", "lesion", "ok"): 1,
        ("test", "normal", "ok"): 1,
        ("train", "normal", "ok"): 1,
    }


# --- splits -----------------------------------------------------------------------------------


def split_of(manifest: Manifest) -> dict[str, str]:
    return {r.key: r.split for r in manifest.rows}


def test_fractions_are_of_patients(tmp_path: Path) -> None:
    # patient p0 alone has many scans; each of ten patients counts once
    rows = [row(f"{p}-{n}", f"p{p}") for p in range(10) for n in range(20 if p == 0 else 1)]
    dealt = assign_splits(Manifest(tmp_path, tuple(rows)), EVEN, normal_label="normal", seed=0)
    patients = {s: {r.patient for r in dealt.select(split=s)} for s in SPLITS}
    assert {s: len(p) for s, p in patients.items()} == {
        "train": 4,
        "validation": 2,
        "calibration": 2,
        "test": 2,
    }


def test_other_labels_and_their_patients_go_to_test(tmp_path: Path) -> None:
    rows = (
        row("a", "ill"),
        row("b", "ill", "lesion"),
        row("c", "unlabelled", ""),
        row("d", "hidden"),
        row("e", "hidden", "lesion").skipped(Reason.TRUNCATED, "cut."),
        row("f", "well"),
        row("g", "well", "").skipped(Reason.NOT_AN_IMAGE, "a report."),
    )
    dealt = assign_splits(Manifest(tmp_path, rows), {"train": 1.0}, normal_label="normal", seed=3)
    assert split_of(dealt) == {
        "a": "test",
        "b": "test",
        "c": "test",
        "d": "test",
        "e": "",
        "f": "train",
        "g": "",
    }


def test_synthetic_normals_are_left_out_unless_allowed(tmp_path: Path) -> None:
    rows = (
        row("a", "p", synthetic=True),
        row("b", "q"),
        row("c", "r", "lesion", synthetic=True),
    )
    manifest = Manifest(tmp_path, rows)
    strict = assign_splits(manifest, {"train": 1.0}, normal_label="normal", seed=0)
    assert split_of(strict) == {"a": "", "b": "train", "c": "test"}
    assert strict.rows[0].reason == "synthetic"
    phantom = assign_splits(
        manifest, {"train": 1.0}, normal_label="normal", seed=0, allow_synthetic=True
    )
    assert split_of(phantom) == {"a": "train", "b": "train", "c": "test"}


def test_same_seed_same_splits_in_any_row_order(tmp_path: Path) -> None:
    rows = tuple(row(str(n), f"p{n}") for n in range(30))
    options: dict[str, Any] = {"fractions": EVEN, "normal_label": "normal"}
    one = split_of(assign_splits(Manifest(tmp_path, rows), seed=1, **options))
    same = split_of(assign_splits(Manifest(tmp_path, rows[::-1]), seed=1, **options))
    other = split_of(assign_splits(Manifest(tmp_path, rows), seed=2, **options))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    "fractions",
    [{"train": 0.9}, {"train": 1.1, "test": -0.1}, {"training": 1.0}, {"train": float("nan")}, {}],
)
def test_wrong_fractions(tmp_path: Path, fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        assign_splits(
            Manifest(tmp_path, (row("a", "p"),)), fractions, normal_label="normal", seed=0
        )


def test_no_normals(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"'healthy'.*\['normal'\]"):
        assign_splits(Manifest(tmp_path, (row("a", "p"),)), EVEN, normal_label="healthy", seed=0)


def test_prove_disjoint_names_counts_and_splits_but_no_patient(tmp_path: Path) -> None:
    rows = (row("k1", "Smith", split="train"), row("k2", "Smith", split="test"))
    with pytest.raises(ManifestError, match=r"1 patient.*1 in test \+ train.*k1") as caught:
        prove_disjoint(Manifest(tmp_path, rows))
    assert "Smith" not in str(caught.value)


def test_the_same_file_in_two_splits(tmp_path: Path) -> None:
    rows = (row("a", "p", split="train"), replace(row("b", "q", split="test"), sha256="sha-a"))
    with pytest.raises(ManifestError, match="1 file"):
        prove_disjoint(Manifest(tmp_path, rows))


shares = st.lists(st.integers(0, 10), min_size=4, max_size=4).filter(any)
scans = st.lists(
    st.tuples(st.integers(0, 25), st.sampled_from(["normal", "normal", "normal", "lesion", ""])),
    min_size=1,
    max_size=80,
).filter(lambda found: any(label == "normal" for _, label in found))


@settings(deadline=None, max_examples=60)
@given(scans=scans, shares=shares, seed=st.integers(0, 2**32 - 1))
def test_splits_are_disjoint_complete_and_in_proportion(
    scans: list[tuple[int, str]], shares: list[int], seed: int
) -> None:
    rows = tuple(row(str(n), f"p{p}", label) for n, (p, label) in enumerate(scans))
    fractions = {s: share / sum(shares) for s, share in zip(SPLITS, shares, strict=True)}
    dealt = assign_splits(Manifest(Path(), rows), fractions, normal_label="normal", seed=seed)

    where: dict[str, set[str]] = {}
    for r in dealt.rows:
        where.setdefault(r.patient, set()).add(r.split)
    assert all(len(splits) == 1 for splits in where.values())
    ill = {r.patient for r in rows if r.label != "normal"}
    assert all(where[patient] == {"test"} for patient in ill)
    well = set(where) - ill
    for split, fraction in fractions.items():
        dealt_here = sum(where[patient] == {split} for patient in well)
        assert abs(dealt_here - fraction * len(well)) <= 1
        assert fraction > 0 or dealt_here == 0


# --- site key ---------------------------------------------------------------------------------


def test_site_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "site.key"
    first = load_site_key(path)
    assert len(first) == 32
    assert load_site_key(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bytes.fromhex(path.read_text().split(" ")[0]) == first
    assert load_site_key(tmp_path / "other.key") != first


def test_no_flipped_bit_of_a_site_key_is_read(tmp_path: Path) -> None:
    """It would change every pseudonym of a study and a patient."""
    path = tmp_path / "site.key"
    key = load_site_key(path)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(flipped(content, place, bit))
            try:
                assert load_site_key(path) == key  # a letter of a digit may be a capital
            except ConfigError:
                continue


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_site_key_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.touch(0o600)
    path.write_text("0a" * 32 + "\n")
    assert load_site_key(path) == b"\x0a" * 32


def test_a_site_key_that_others_can_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "site.key"
    load_site_key(path)
    load_site_key(path)
    assert caplog.text == ""
    path.chmod(0o644)
    load_site_key(path)
    assert "site.key can be read by others" in caplog.text


@pytest.mark.parametrize("content", ["", "abc", "g" * 64])
def test_damaged_site_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "site.key"
    path.write_text(content)
    with pytest.raises(ConfigError, match="64 hex digits"):
        load_site_key(path)


# --- the same picture -------------------------------------------------------------------------


def test_a_picture_has_one_name_in_every_container(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as image:
        decoded = np.asarray(image)
    Image.fromarray(decoded).save(tmp_path / "b.png")
    Image.fromarray(decoded.astype(np.uint16) * 257).save(tmp_path / "c.png")
    Image.fromarray(decoded).save(tmp_path / "d.tif")
    for name, bits in (("e", 8), ("f", 12), ("g", 16)):
        write_dicom(tmp_path / name, make_dataset(decoded, bits=bits, patient=name))
    write_dicom(
        tmp_path / "h",
        make_dataset(255 - decoded, bits=8, photometric="MONOCHROME1", patient="h"),
    )
    Image.fromarray(decoded[:, ::-1]).save(tmp_path / "z.png")
    rows = {row.path: row for row in build(tmp_path).rows}
    names = {path: row.pixels for path, row in rows.items()}
    other = names.pop("z.png")
    assert len(names) == 8
    assert len(set(names.values())) == 1
    assert other not in names.values()
    marks = [scan_marks(rows[path]) for path in ("a.jpg", "b.png", "z.png")]
    assert len(marks[0] & marks[1]) == 1
    assert not marks[0] & marks[2]


def test_twins_stay_together_and_never_apart_from_their_label() -> None:
    rows = [row(f"{i:02d}", f"P{i:02d}", pixels=f"{i}") for i in range(40)]
    # The film of every even patient is that of the next one too; one twin is abnormal.
    rows = [replace(r, pixels=f"{i // 2}") for i, r in enumerate(rows)]
    rows[7] = replace(rows[7], label="abnormal")
    manifest = Manifest(Path(), tuple(rows))
    shares = {"train": 0.25, "validation": 0.25, "calibration": 0.25, "test": 0.25}
    dealt = assign_splits(manifest, shares, normal_label="normal", seed=0)
    splits = [row.split for row in dealt.rows]
    assert splits[::2] == splits[1::2]
    assert splits[6] == splits[7] == "test"
    assert {"train", "validation", "calibration", "test"} == set(splits)


def test_a_picture_in_two_splits_is_found() -> None:
    twins = [row("a", "P1", pixels="x", split="train"), row("b", "P2", pixels="x", split="test")]
    with pytest.raises(ManifestError, match=r"1 picture\(s\) are in more than one split"):
        prove_disjoint(Manifest(Path(), tuple(twins)))


# --- names ------------------------------------------------------------------------------------


def test_accents_stored_apart_from_their_letters_match(tmp_path: Path) -> None:
    png(tmp_path / "Gru\u0308n" / "a.png")  # as some systems store it
    (found,) = build(tmp_path, labels={"normal": ["Gr\u00fcn/*"]}).rows
    assert found.label == "normal"


def test_duplicates_have_keys_of_their_own(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    rows = build(tmp_path).rows
    assert [row.reason for row in rows] == ["", "duplicate", "duplicate"]
    assert len({row.key for row in rows}) == 3


def test_what_a_network_could_not_see_is_a_row(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    values = np.zeros((40, 40), dtype=np.uint8)
    values[3, 4] = 9  # 99 % are equal
    Image.fromarray(values).save(tmp_path / "b.png")
    rows = build(tmp_path, preprocessing=Preprocessing(8)).rows
    assert [row.reason for row in rows] == ["", "constant"]
    assert [row.reason for row in build(tmp_path).rows] == ["", ""]


def test_what_a_file_says_and_cannot_be_used_is_noted(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", make_dataset([[0, 1, 2]], PixelSpacing=[0.5, 0.5]))
    path.write_bytes(path.read_bytes().replace(b"0.5\\0.5", b"0,5\\0,5"))  # a decimal comma
    (found,) = build(tmp_path).rows
    assert (found.status, found.spacing_row) == ("ok", None)
    assert "PixelSpacing not used" in found.detail
