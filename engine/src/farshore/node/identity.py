"""Who this node is: its key, its certificate, the CA that it trusts, and the catalog that it obeys.

Files in ``state_dir``, all 0600: ``node.key`` (EC P-256, made here, never leaves), ``node.pem``, ``ca.pem``,
``catalog.json``. The certificate is written last: a node with a valid one is enrolled.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from farshore import durable
from farshore.errors import Permanent
from farshore.node.config import NodeConfig


def spiffe_id(site: str, node: str) -> str:
    """Return the URI that names a node in its certificate."""
    return f"spiffe://farshore/site/{site}/node/{node}"


def fingerprint(certificate_pem: bytes | str) -> str:
    """Return ``sha256:<hex>`` of the DER form of the first certificate in ``certificate_pem``.

    Raises:
        ValueError: it is no certificate.
    """
    data = certificate_pem.encode() if isinstance(certificate_pem, str) else certificate_pem
    der = x509.load_pem_x509_certificate(data).public_bytes(serialization.Encoding.DER)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def load_grant_key(pem: str) -> Ed25519PublicKey:
    """Return the public key that signs grants.

    Raises:
        Permanent: it is none.
    """
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError as error:
        raise Permanent("the control plane's grant key cannot be read", code="grant-key-invalid") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Permanent("the control plane's grant key is no Ed25519 key", code="grant-key-invalid")
    return key


@dataclass(frozen=True, slots=True)
class Catalog:
    """The catalog that the node obeys; ``generation`` never shrinks."""

    catalog_id: str
    generation: int
    grant_key_pem: str


class Identity:
    """The files of one node's identity in ``directory``."""

    def __init__(self, directory: Path, site: str, node: str) -> None:
        self.directory = directory
        self.site = site
        self.node = node
        self.key_path = directory / "node.key"
        self.certificate_path = directory / "node.pem"
        self.ca_path = directory / "ca.pem"
        self.catalog_path = directory / "catalog.json"

    def make_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the node's key, made now if there is none."""
        if self.key_path.exists():
            return self._load_key()
        durable.make_dir(self.directory)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        durable.create(self.key_path, pem)
        return self._load_key()

    def _load_key(self) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(self.key_path.read_bytes(), password=None)
        except ValueError as error:
            raise Permanent(
                f"the node's key {str(self.key_path)!r} cannot be read",
                code="node-key-invalid",
                hint="Remove it and enrol the node again with a new token.",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Permanent(f"the node's key {str(self.key_path)!r} is no EC key", code="node-key-invalid")
        return key

    def request_pem(self) -> str:
        """Return a certificate signing request. The control plane sets the names; those in here are a courtesy."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.node)])
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id(self.site, self.node))])
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(name)
            .add_extension(uri, critical=False)
            .sign(self.make_key(), hashes.SHA256())
        )
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def certificate(self) -> x509.Certificate | None:
        """Return the certificate, None if there is none."""
        try:
            return x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise Permanent(
                f"the node's certificate {str(self.certificate_path)!r} cannot be read",
                code="node-certificate-invalid",
                hint="Remove it and enrol the node again with a new token.",
            ) from error

    def why_not(self, certificate: x509.Certificate, now: dt.datetime) -> str:
        """Return why ``certificate`` is of no use to this node now; empty if it is."""
        ours = self.make_key().public_key()
        if certificate.public_key() != ours:
            return "it belongs to another key"
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        if spiffe_id(self.site, self.node) not in uris:
            return f"it names {', '.join(uris) or 'nobody'}, not {spiffe_id(self.site, self.node)}"
        if now >= certificate.not_valid_after_utc:
            return f"it ended at {certificate.not_valid_after_utc.isoformat()}"
        return ""

    def is_enrolled(self, now: dt.datetime) -> bool:
        """Say whether certificate, CA and catalog are there and of use at ``now``."""
        certificate = self.certificate()
        present = certificate is not None and self.ca_path.exists() and self.catalog_path.exists()
        return present and certificate is not None and not self.why_not(certificate, now)

    def renew_at(self) -> dt.datetime:
        """Return when two thirds of the certificate's life are over."""
        certificate = self.certificate()
        if certificate is None:
            return dt.datetime.max.replace(tzinfo=dt.UTC)
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return certificate.not_valid_before_utc + life * 2 / 3

    def accept(self, certificate_pem: str, now: dt.datetime) -> None:
        """Keep a certificate that the control plane made, if it is one for this node.

        Raises:
            Permanent: it is not.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        except ValueError as error:
            raise Permanent("the control plane sent no certificate", code="certificate-invalid") from error
        problem = self.why_not(certificate, now)
        if problem:
            raise Permanent(f"the control plane's certificate is not for us: {problem}", code="certificate-invalid")
        durable.write(self.certificate_path, certificate_pem.encode())

    def catalog(self) -> Catalog:
        """Return the catalog that the node obeys.

        Raises:
            Permanent: the node is not enrolled.
        """
        try:
            data = json.loads(self.catalog_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Permanent(
                f"node {self.node!r} is not enrolled",
                code="not-enrolled",
                hint="Run `farshore node enrol` with a token of this node.",
            ) from None
        return Catalog(str(data["catalog_id"]), int(data["generation"]), str(data["grant_key_pem"]))

    def keep_catalog(self, catalog: Catalog) -> None:
        """Make ``catalog`` the one that is obeyed."""
        durable.write_json(
            self.catalog_path,
            {
                "catalog_id": catalog.catalog_id,
                "generation": catalog.generation,
                "grant_key_pem": catalog.grant_key_pem,
            },
        )


def of(config: NodeConfig) -> Identity:
    """Return the identity that the settings name."""
    return Identity(config.state_dir, config.site, config.name)
