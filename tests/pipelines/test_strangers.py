"""A bundle, a run or an archive of somebody else reads, writes and costs no more than it may."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anomaly.data.readers import zips
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import read_scan
from anomaly.errors import BundleError, UnreadableScan
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import copy_bundle
from tests.pipelines.road import Road, done, refused

ROOT = Path(__file__).parents[2]


# --- a bundle -----------------------------------------------------------------------------------


@pytest.fixture
def bundle(road: Road, tmp_path: Path) -> Path:
    return Path(shutil.copytree(road.run.bundle, tmp_path / "bundle"))


def reseal(bundle: Path, **changes: object) -> None:
    """Change a bundle's record as who wants to do harm would, with a seal that fits."""
    record = {**json.loads((bundle / "bundle.json").read_text()), **changes}
    record.pop("sha256")
    plain = json.dumps(record, sort_keys=True).encode()
    sealed = {**record, "sha256": hashlib.sha256(plain).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(sealed, indent=1, sort_keys=True))


def test_who_names_a_signer_gets_nothing_of_anybody_else(
    bundle: Path, road: Road, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    out = tmp_path / "scores"
    arguments = ("--bundle", bundle, "--signer", public)
    node = tmp_path / "node.yaml"
    node.write_text(f"bundle: {bundle}\nfolder: {tmp_path / 'node'}\nsigner: {public}\n")
    for command in (
        ("score", road.scans, "--out", out, *arguments),
        ("doctor", *arguments),
        ("node", node),
    ):
        assert "has no signature" in refused(*command)
    assert not out.exists()
    assert not (tmp_path / "node").exists()
    assert done("sign", bundle, "--key", private).out == f"{bundle}/bundle.sig written\n"
    done("doctor", *arguments)
    done("score", road.scans, "--out", out, *arguments)
    done("doctor", "--bundle", out / "bundle", "--signer", public)
    assert "--signer goes with --bundle" in refused("doctor", "--signer", public)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "more.txt", "weights.safetensors/../x"]
)
def test_a_bundle_names_no_files_of_others(bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("a key")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    reseal(bundle, files={**files, name: hashlib.sha256(b"a key").hexdigest()})
    for use in (read_bundle, lambda path: copy_bundle(path, tmp_path / "copy")):
        with pytest.raises(BundleError, match="names files that no bundle has"):
            use(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "secret"]


@pytest.mark.parametrize("name", ["weights.safetensors", "seen.json", "bundle.json"])
def test_a_link_in_a_bundle_is_not_followed(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    for use in (read_bundle, lambda path: copy_bundle(path, tmp_path / "copy")):
        with pytest.raises(BundleError, match=f"{name} is a link"):
            use(bundle)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "bundle.json"])
def test_a_pipe_in_a_bundle_is_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=r"no plain file|is missing"):
        read_bundle(bundle)


def test_json_without_end_or_bottom_is_refused(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(bundle)
    with (bundle / "bundle.json").open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(BundleError, match="no plain file of at most"):
        read_bundle(bundle)


def test_files_beside_a_bundle_are_not_copied(bundle: Path, tmp_path: Path) -> None:
    (bundle / "id_rsa").write_text("a key")
    copy_bundle(bundle, tmp_path / "copy")
    assert "id_rsa" not in {path.name for path in (tmp_path / "copy").iterdir()}
    assert read_bundle(tmp_path / "copy").hash == read_bundle(bundle).hash


def test_a_bundle_does_not_switch_isolation_off(road: Road, tmp_path: Path) -> None:
    """The configuration of the small road decodes in the main process; a folder of scans is not."""
    assert read_bundle(road.run.bundle).config.data.workers == 0
    done("score", road.scans / "abnormal", "--bundle", road.run.bundle, "--out", tmp_path / "run")
    assert "workers: 0" not in RunFolder(tmp_path / "run").config.read_text()


# --- a run ----------------------------------------------------------------------------------------


def test_a_map_that_claims_to_be_huge_is_not_unpacked(road: Road, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(road.run.path, tmp_path / "run")))
    row = next(row for row in run.results.read()[0] if row.map_part is not None)
    path = run.results.maps(row.map_part or 0)
    header = {"descr": "<f4", "fortran_order": False, "shape": (10_000, 20_000)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{row.key}.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(800):
            member.write(bytes(1_000_000))
    assert path.stat().st_size < 2**21
    tracemalloc.start()
    with pytest.raises(UnreadableScan, match="claims to be larger than any map"):
        run.results.evidence(row)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


@pytest.mark.parametrize(
    "name", ["report", "studies", "figures", "run.jsonl", "scores.csv", "parts"]
)
def test_a_run_of_somebody_else_writes_nothing_elsewhere(
    road: Road, tmp_path: Path, name: str
) -> None:
    run = RunFolder(Path(shutil.copytree(road.run.path, tmp_path / "run")))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "images").mkdir(parents=True)
    (elsewhere / "images" / "mine-image.png").write_bytes(b"mine")
    place = run.path / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(elsewhere)
    command = "figures" if name == "figures" else "report"
    arguments = ("--pdf", road.rows[0].key) if name == "studies" else ()
    if name == "scores.csv":
        command = "score"
    assert f"{name} is a link" in refused(command, run.path, *arguments)
    assert [path.name for path in elsewhere.rglob("*")] == ["images", "mine-image.png"]


def test_pictures_of_another_folder_are_not_removed(road: Road, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(road.run.path, tmp_path / "run")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine-image.png").write_bytes(b"mine")
    shutil.rmtree(run.report.parent / "images")
    (run.report.parent / "images").symlink_to(elsewhere)
    assert "images is a link" in refused("report", run.path)
    assert (elsewhere / "mine-image.png").read_bytes() == b"mine"


@pytest.mark.skipif(find_spec("weasyprint") is None, reason="needs the extra `pdf`")
def test_the_name_of_a_study_leads_nowhere(road: Road, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(road.run.path, tmp_path / "run")))
    rows, provenance = run.results.read()
    scored = next(row for row in rows if row.status == "scored")
    changed = [
        replace(row, study="../../escaped" if row.key == scored.key else row.study) for row in rows
    ]
    run.results.restate(0, changed, provenance)
    run.results.finish(provenance, run.scores_csv)
    done("report", run.path, "--pdf", "../../escaped")
    (pdf,) = run.studies.glob("*.pdf")
    assert pdf.parent == run.studies
    assert not list(tmp_path.glob("*.pdf"))


# --- an archive -----------------------------------------------------------------------------------


def test_the_table_of_contents_of_an_archive_is_read_once(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "study.zip"
    scans = sorted((road.scans / "normal").rglob("*.dcm"))[:10]
    with zipfile.ZipFile(archive, "w") as file:
        for number, path in enumerate(scans):
            file.write(path, f"{number}.dcm")
    opened = []
    real = zipfile.ZipFile

    def counted(path: Path) -> zipfile.ZipFile:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(zips.zipfile, "ZipFile", counted)
    for number, path in enumerate(scans):
        scan = read_scan(archive / f"{number}.dcm", 0, IntensityPolicy())
        np.testing.assert_array_equal(scan.pixels, read_scan(path, 0, IntensityPolicy()).pixels)
    assert len(opened) == 1
    with real(archive, "a") as file:  # another archive by now
        file.write(scans[0], "more.dcm")
    read_scan(archive / "more.dcm", 0, IntensityPolicy())
    assert len(opened) == 2


# --- processes ------------------------------------------------------------------------------------

DECODES = """
from anomaly.data.readers.isolation import Workers
from tests.data.dicom_samples import tell_pid, wait_for_ever

if __name__ == "__main__":
    with Workers(1, seconds=600) as workers:
        for _ in workers.map(tell_pid, [{pid!r}]):
            pass
        for _ in workers.map(wait_for_ever, [{pipe!r}]):
            pass
"""


def test_who_is_killed_leaves_no_process_and_no_scan(tmp_path: Path) -> None:
    pid, pipe, scratch = tmp_path / "pid", tmp_path / "pipe", tmp_path / "scratch"
    scratch.mkdir()
    os.mkfifo(pipe)
    script = tmp_path / "decode.py"
    script.write_text(DECODES.format(pid=str(pid), pipe=str(pipe)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    wait_for(lambda: pid.exists() and pid.read_text() != "")
    decoder = int(pid.read_text())
    wait_for(lambda: _holds_open(decoder, pipe))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not Path(f"/proc/{decoder}").exists())
    assert list(scratch.glob("anomaly-*"))  # nobody was left to remove it
    script.write_text(script.read_text().replace("wait_for_ever, [", "tell_pid, ["))
    pipe.unlink()
    subprocess.run([sys.executable, str(script)], env=environment, check=True)
    assert list(scratch.glob("anomaly-*")) == []


def _holds_open(process: int, path: Path) -> bool:
    """Whether a process waits for the other end of a pipe: in the kernel, at opening."""
    try:
        return "fifo" in Path(f"/proc/{process}/wchan").read_text() or _is_asleep(process)
    except OSError:
        return False


def _is_asleep(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- a disk that fills up -------------------------------------------------------------------------


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Path(shutil.copytree(road.run.path, tmp_path / "run")))
    folder = run.report.parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) > 5
    written = []

    def full(array: np.ndarray) -> bytes:
        written.append(array)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return b"new"

    with monkeypatch.context() as patch:
        patch.setattr("anomaly.reporting.html.pictures.png_bytes", full)
        assert "No space left on device" in refused("report", run.path)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    done("report", run.path)
    assert done("verify", run.path).out
