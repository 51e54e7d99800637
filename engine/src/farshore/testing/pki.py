"""A certificate authority for tests: nodes with the certificates that the control plane would give them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from farshore.transport.tls import NodeTls, load


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """PEM files of one node."""

    cert: Path
    key: Path
    ca: Path


class TestAuthority:
    """Issues node certificates into a directory. Two authorities do not trust each other."""

    __test__ = False  # pytest collects classes by this name

    def __init__(self, directory: Path, name: str = "test") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        now = dt.datetime.now(dt.UTC)
        self._cert = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / f"{name}-ca.pem"
        self.ca.write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def node(self, site: str, node: str, *, uri: str | None = None, days: float = 1.0) -> NodeFiles:
        """Issue a certificate; each call a new one. ``days`` below 0 gives one that has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        ends = now + dt.timedelta(days=days)
        names = [x509.UniformResourceIdentifier(uri or f"spiffe://farshore/site/{site}/node/{node}")]
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, ends) - dt.timedelta(minutes=5))
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        files = NodeFiles(self._directory / f"{node}.pem", self._directory / f"{node}.key", self.ca)
        files.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        files.key.chmod(0o600)
        return files

    def load(self, site: str, node: str) -> NodeTls:
        """Issue a certificate and return it ready to use."""
        files = self.node(site, node)
        return load(files.cert, files.key, files.ca)
