"""Signatures of bundles: each that is not by the signer named, of this very bundle, is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from anomaly.errors import AnomalyError, BundleError, ConfigError
from anomaly.store.bundle import read_bundle, write_bundle
from anomaly.store.bundle_files import SHIPPED, bundle_hash, copy_bundle
from anomaly.store.signatures import check_signature, sign_bundle

PEM = serialization.Encoding.PEM


def write_keys(folder: Path, key: Ed25519PrivateKey | X25519PrivateKey) -> tuple[Path, Path]:
    folder.mkdir()
    private, public = folder / "private.pem", folder / "public.pem"
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(PEM, form, plain))
    form_of_public = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(PEM, form_of_public))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "keys", Ed25519PrivateKey.generate())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    copy_bundle(SHIPPED / "zhanglab", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_signature_is_of_the_key_and_of_the_bundle(
    tmp_path: Path, bundle: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    assert sign_bundle(bundle, private).read_bytes() != b""
    check_signature(bundle, public)
    read_bundle(bundle)  # is as good as before
    _, other = write_keys(tmp_path / "others", Ed25519PrivateKey.generate())
    with pytest.raises(BundleError, match=r"is not signed by .*others/public\.pem"):
        check_signature(bundle, other)


def test_it_travels_with_a_copy_and_not_with_another_bundle(
    tmp_path: Path, bundle: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    sign_bundle(bundle, private)
    copy_bundle(bundle, tmp_path / "copy")
    check_signature(tmp_path / "copy", public)
    # Written anew, as by a calibration, it is another bundle.
    write_bundle(read_bundle(bundle), tmp_path / "copy")
    with pytest.raises(BundleError, match="has no signature"):
        check_signature(tmp_path / "copy", public)


def test_who_writes_the_hashes_anew_does_not_get_the_signature(
    bundle: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    sign_bundle(bundle, private)
    signature = (bundle / "bundle.sig").read_bytes()
    read = read_bundle(bundle)
    lenient = replace(read, calibrated=replace(read.calibration(), alpha=0.01))
    write_bundle(lenient, bundle)
    (bundle / "bundle.sig").write_bytes(signature)
    assert read_bundle(bundle).calibration().alpha == 0.01  # it is whole
    with pytest.raises(BundleError, match="is not signed by"):
        check_signature(bundle, public)


@pytest.mark.parametrize("size", [0, 63, 65, 10_000])
def test_a_file_that_is_no_signature_is_refused(
    bundle: Path, keys: tuple[Path, Path], size: int
) -> None:
    (bundle / "bundle.sig").write_bytes(bytes(size))
    with pytest.raises(BundleError):
        check_signature(bundle, keys[1])


def test_a_signature_that_is_a_link_is_not_followed(bundle: Path, keys: tuple[Path, Path]) -> None:
    sign_bundle(bundle, keys[0]).rename(bundle.parent / "elsewhere")
    (bundle / "bundle.sig").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        check_signature(bundle, keys[1])


def test_a_damaged_bundle_is_not_signed(bundle: Path, keys: tuple[Path, Path]) -> None:
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "weights.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"not signed: weights\.safetensors has changed"):
        sign_bundle(bundle, keys[0])
    assert not (bundle / "bundle.sig").exists()


def test_keys_of_another_kind_are_refused(tmp_path: Path, bundle: Path) -> None:
    private, public = write_keys(tmp_path / "x25519", X25519PrivateKey.generate())
    for file, use in ((private, sign_bundle), (public, check_signature)):
        with pytest.raises(ConfigError, match=r"another kind: expected PEM of Ed25519"):
            use(bundle, file)
        file.write_text("nothing")
        with pytest.raises(ConfigError, match="that can be read"):
            use(bundle, file)
        file.unlink()
        with pytest.raises(ConfigError, match="No such file"):
            use(bundle, file)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_the_keys_and_can_check_the_signature(tmp_path: Path, bundle: Path) -> None:
    def openssl(*arguments: str) -> str:
        done = subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "private.pem")
    openssl("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem")
    sign_bundle(bundle, tmp_path / "private.pem")
    check_signature(bundle, tmp_path / "public.pem")
    message = f"anomaly bundle 1\n{bundle_hash(bundle)}"
    (tmp_path / "message").write_text(message)
    verified = openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin"),
        *("-in", "message", "-sigfile", "bundle/bundle.sig"),
    )
    assert "Verified Successfully" in verified


def test_without_the_library_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, keys: tuple[Path, Path]
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(AnomalyError, match="pip install cryptography"):
        check_signature(bundle, keys[1])
