"""Who a node is on the wire: TLS 1.3 only, both sides with certificates of the same authority.

A peer is known by the URI in its certificate, ``spiffe://farshore/site/<site>/node/<node>``, and by the certificate's
thumbprint, which a grant names. Host names prove nothing here and are not looked at.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from farshore.errors import Forbidden, Invalid
from farshore.transport.records import Secured

_URI: Final = re.compile(r"^spiffe://farshore/site/([A-Za-z0-9._-]{1,63})/node/([A-Za-z0-9._-]{1,63})$")


@dataclass(frozen=True, slots=True)
class Peer:
    """A node as its certificate shows it. ``thumbprint`` is the lower-case hex SHA-256 of the DER form."""

    site: str
    node: str
    thumbprint: str

    def __str__(self) -> str:
        return f"node {self.node} of site {self.site}"


@dataclass(frozen=True, slots=True)
class NodeTls:
    """Our own identity with the contexts to accept and to open connections."""

    peer: Peer
    server: ssl.SSLContext
    client: ssl.SSLContext


def identity_of(der: bytes) -> Peer:
    """Return the node that a certificate in DER form names.

    Raises:
        Forbidden: it names none, or several.
    """
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise Forbidden("the peer's certificate names no node", code="peer-unknown") from error
    match = _URI.match(uris[0]) if len(uris) == 1 else None
    if not match:
        raise Forbidden("the peer's certificate names no node", code="peer-unknown", names=uris)
    return Peer(match[1], match[2], sha256(der).hexdigest())


def peer_of(connection: Secured) -> Peer:
    """Return who is at the other end of a connection.

    Raises:
        Forbidden: it showed no certificate of a node.
    """
    if not connection.certificate:
        raise Forbidden("the peer showed no certificate", code="peer-unknown")
    return identity_of(connection.certificate)


def same_thumbprint(one: str, other: str) -> bool:
    """Compare two thumbprints, written with or without the prefix ``sha256:`` and in either case."""
    return one.lower().removeprefix("sha256:") == other.lower().removeprefix("sha256:")


def load(cert_path: Path, key_path: Path, ca_path: Path) -> NodeTls:
    """Return a node's identity from PEM files.

    Raises:
        Invalid: a file is missing or wrong; ``field`` names it.
    """
    try:
        certificate = x509.load_pem_x509_certificate(Path(cert_path).read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"{cert_path} holds no certificate: {error}", code="certificate", field="cert") from error
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the peer is known by URI and thumbprint, see the module's text
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(ca_path)
        except (OSError, ssl.SSLError) as error:
            raise Invalid(f"{ca_path} holds no authority: {error}", code="certificate", field="ca") from error
        try:
            context.load_cert_chain(cert_path, key_path)
        except (OSError, ssl.SSLError) as error:
            raise Invalid(f"{key_path} is not the key of {cert_path}: {error}", code="key", field="key") from error
        contexts.append(context)
    server, client = contexts
    # Connections live for days and are never resumed; unread tickets would turn a close into a reset.
    server.num_tickets = 0
    der = certificate.public_bytes(Encoding.DER)
    return NodeTls(identity_of(der), server, client)
