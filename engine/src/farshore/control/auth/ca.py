"""The certificate authority of nodes and of the control plane's own listeners (EC P-256, X.509).

A node's identity is what the authority wrote into the certificate (``spiffe://farshore/site/<site>/node/<node>``),
never what a request asks for.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from farshore.errors import Invalid, Unauthenticated

NODE_DAYS: Final = 30
SERVER_DAYS: Final = 365
CA_DAYS: Final = 3650
#: Certificates are valid a little before their making, for nodes whose clocks are behind.
SKEW: Final = timedelta(minutes=5)

_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a certificate says that a node is."""

    site: str
    node: str
    thumbprint: str
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and what is recorded of it. Times are seconds since the epoch."""

    pem: str
    thumbprint: str
    serial: str
    not_after: float


def thumbprint(der: bytes) -> str:
    """Return the lower-case hex SHA-256 of a certificate's DER form."""
    return hashlib.sha256(der).hexdigest()


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8 (the file's mode protects it)."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def node_uri(site: str, node: str) -> str:
    """Return the name of a node in its certificate."""
    return f"spiffe://farshore/site/{site}/node/{node}"


class Authority:
    """Signs certificates with one key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, catalog_id: str) -> Authority:
        """Return a new authority; ``catalog_id`` makes its name unique."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Farshore authority {catalog_id}")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate_pem: bytes, private_pem: bytes) -> Authority:
        """Return the authority that was stored."""
        key = serialization.load_pem_private_key(private_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Invalid("the authority's key is not an EC key", code="ca-key-invalid")
        return cls(x509.load_pem_x509_certificate(certificate_pem), key)

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return self.certificate.public_bytes(_PEM).decode()

    @property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` of the authority's certificate, which joining nodes pin."""
        return f"sha256:{thumbprint(self.certificate.public_bytes(serialization.Encoding.DER))}"

    def key_pem(self) -> bytes:
        """Return the private key; for the file that keeps it only."""
        return key_pem(self._key)

    def sign_node(self, csr_pem: str, site: str, node: str) -> Issued:
        """Return a certificate for the key in ``csr_pem``; the names in the request are not looked at.

        Raises:
            Invalid: the request cannot be read, is not signed by its own key, or the key is not EC P-256.
        """
        try:
            csr = x509.load_pem_x509_csr(csr_pem.encode())
            key = csr.public_key()
            valid = csr.is_signature_valid
        except (ValueError, TypeError, InvalidSignature, UnicodeEncodeError) as error:
            raise Invalid(
                "csr_pem is no certificate request in PEM form", code="csr-invalid", field="csr_pem"
            ) from error
        if not valid:
            raise Invalid("the certificate request is not signed by its own key", code="csr-invalid", field="csr_pem")
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Invalid("a node's key must be EC P-256", code="csr-invalid", field="csr_pem")
        return self._issue(
            key,
            f"{site}/{node}",
            [x509.UniformResourceIdentifier(node_uri(site, node))],
            [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
            NODE_DAYS,
        )

    def sign_server(self, key: ec.EllipticCurvePrivateKey, names: Iterable[str]) -> Issued:
        """Return a certificate of the control plane's listeners for host names and addresses."""
        return self._issue(
            key.public_key(),
            "farshore control plane",
            [_general_name(name) for name in names],
            [ExtendedKeyUsageOID.SERVER_AUTH],
            SERVER_DAYS,
        )

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        common_name: str,
        names: list[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
        days: int,
    ) -> Issued:
        now = datetime.now(UTC)
        until = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        der = certificate.public_bytes(serialization.Encoding.DER)
        return Issued(
            certificate.public_bytes(_PEM).decode(),
            thumbprint(der),
            f"{certificate.serial_number:x}",
            certificate.not_valid_after_utc.timestamp(),
        )


@lru_cache(maxsize=1024)  # every call of a node begins with its certificate
def read_peer(der: bytes) -> PeerIdentity:
    """Return the identity in a peer's certificate, whose signature TLS has checked already.

    Raises:
        Unauthenticated: it is no node's certificate.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise _no_node() from error
    for uri in uris:
        parts = uri.removeprefix("spiffe://farshore/").split("/")
        if uri.startswith("spiffe://farshore/") and len(parts) == 4 and (parts[0], parts[2]) == ("site", "node"):
            return PeerIdentity(
                parts[1],
                parts[3],
                thumbprint(der),
                certificate.not_valid_before_utc.timestamp(),
                certificate.not_valid_after_utc.timestamp(),
            )
    raise _no_node()


def _no_node() -> Unauthenticated:
    return Unauthenticated(
        "the certificate names no node of Farshore",
        code="certificate-required",
        hint="Enrol the node: `farshore node enrol --config FILE --token-file FILE`.",
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
