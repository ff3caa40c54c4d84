r"""Signatures of bundles: an Ed25519 signature (RFC 8032) of the bundle's hash proves its origin.

::

    bundle.sig    64 bytes: signature of "anomaly bundle 1\n" + SHA-256 of bundle.json, in hex

``bundle.json`` lists the hashes of all other files of a bundle, so its hash covers the whole
bundle. Hashes alone prove that a bundle is intact, but not who made it: anyone who changes a file
can also update its hash. The user provides the signer's public key for a check, because a key that
comes with the bundle would prove nothing.

Keys are PEM files, as written by ``openssl genpkey -algorithm ed25519``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.errors import AnomalyError, BundleError, ConfigError
from anomaly.files import whole, writing
from anomaly.store.bundle_files import SIGNATURE, bundle_hash, bundle_problems, read_bundle_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = ["check_signature", "sign_bundle"]

PREFIX = b"anomaly bundle 1\n"
"""Start of the signed message, so that a signature of anything else is invalid for a bundle."""


def sign_bundle(folder: Path, key: Path) -> Path:
    """Sign a bundle, replacing an existing signature; return the path of the signature.

    Parameters
    ----------
    folder : Path
    key : Path
        Private key, PEM without a passphrase.

    Raises
    ------
    BundleError
        If there is no bundle, or it is damaged.
    ConfigError
        If `key` contains no private Ed25519 key.
    AnomalyError
        If the signature cannot be written.
    """
    private = _private_key(key)
    problems = bundle_problems(folder)
    if problems:
        raise BundleError(f"bundle {folder} is not signed: " + "; ".join(problems))
    path = folder / SIGNATURE
    with writing(path), whole(path) as file:
        file.write(private.sign(_message(folder)))
    return path


def check_signature(folder: Path, signer: Path) -> None:
    """Check that the owner of a key signed a bundle.

    Parameters
    ----------
    folder : Path
    signer : Path
        Public key, PEM.

    Raises
    ------
    BundleError
        If there is no bundle or no signature, or the signature is by another key or of another
        bundle.
    ConfigError
        If `signer` contains no public Ed25519 key.
    """
    public = _public_key(signer)
    message = _message(folder)
    try:
        signature = read_bundle_file(folder / SIGNATURE)
    except OSError as error:
        raise BundleError(
            f"bundle {folder} has no signature that can be read ({error.strerror}), and one by "
            f"{signer} is asked for: have it signed by `anomaly sign`"
        ) from error
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature as error:
        raise BundleError(
            f"bundle {folder} is not signed by {signer}: the signature is by another key, or the "
            "bundle was changed after it was signed"
        ) from error


def _message(folder: Path) -> bytes:
    return PREFIX + bundle_hash(folder).encode("ascii")


def _private_key(path: Path) -> Ed25519PrivateKey:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no private key that can be read: {_EXPECTED}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a private key of another kind: {_EXPECTED}")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no public key that can be read: {_EXPECTED}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} holds a public key of another kind: {_EXPECTED}")
    return key


_EXPECTED = "expected PEM of Ed25519, without a passphrase (openssl genpkey -algorithm ed25519)"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read: {error.strerror}") from error


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise AnomalyError(
            "signatures need cryptography, which is not installed: pip install cryptography"
        ) from error
