"""The keys of a measurement: an authority of its own, a source node, a target node, and the key that signs grants.

    ca.pem  source.pem source.key  target.pem target.key  grant.pem grant.key

Both ends need the folder. It admits to nothing but the disks that ``linktest serve`` is started with.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from farshore import durable
from farshore.control.auth.ca import Authority, key_pem, new_key
from farshore.errors import Invalid
from farshore.transport.tls import NodeTls, Peer, identity_of, load

SITE: Final = "linktest"
SOURCE: Final = "source"
TARGET: Final = "target"
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Keys:
    """One end's identity, the other end as a peer, and the key of the grants."""

    tls: NodeTls
    peer: Peer
    grant_key: Ed25519PublicKey
    grant_private: Ed25519PrivateKey


def make(folder: Path) -> bool:
    """Make the keys in ``folder``; False where good ones are there already."""
    if (folder / "grant.key").exists() and not _expired(folder):
        return False
    durable.make_dir(folder)
    authority = Authority.create(SITE)
    durable.write(folder / "ca.pem", authority.pem.encode(), 0o644)
    for name in (SOURCE, TARGET):
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        issued = authority.sign_node(request.public_bytes(_PEM).decode(), SITE, name)
        durable.write(folder / f"{name}.pem", issued.pem.encode(), 0o644)
        durable.write(folder / f"{name}.key", key_pem(key))
    grants = Ed25519PrivateKey.generate()
    public = grants.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    durable.write(folder / "grant.pem", public, 0o644)
    private = grants.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    durable.write(folder / "grant.key", private)  # last: it says that all are there
    return True


def read(folder: Path, name: str) -> Keys:
    """Return the keys of the end called ``name``.

    Raises:
        Invalid: they are not there, damaged or expired; ``field`` is ``keys``.
    """
    hint = f"Make them with: farshore linktest keys {folder}, and copy the folder to both ends."
    try:
        if _expired(folder):
            raise Invalid(f"the keys in {folder} have expired", code="keys-expired", field="keys", hint=hint)
        tls = load(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")
        other = x509.load_pem_x509_certificate((folder / f"{_other(name)}.pem").read_bytes())
        public = serialization.load_pem_public_key((folder / "grant.pem").read_bytes())
        private = serialization.load_pem_private_key((folder / "grant.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise Invalid(f"{folder} holds no keys: {error}", code="keys-missing", field="keys", hint=hint) from error
    if not isinstance(public, Ed25519PublicKey) or not isinstance(private, Ed25519PrivateKey):
        raise Invalid(f"the grant key in {folder} is of a wrong kind", code="keys-missing", field="keys", hint=hint)
    return Keys(tls, identity_of(other.public_bytes(serialization.Encoding.DER)), public, private)


def _other(name: str) -> str:
    return TARGET if name == SOURCE else SOURCE


def _expired(folder: Path) -> bool:
    certificate = x509.load_pem_x509_certificate((folder / f"{SOURCE}.pem").read_bytes())
    return certificate.not_valid_after_utc < datetime.now(UTC)
