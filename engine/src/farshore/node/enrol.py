"""Enrolment: a one-time token becomes a certificate.

The node makes its key itself; the control plane sees a signing request only. The token is sent over a connection whose
CA is known beforehand: from a file, or by its SHA-256 (fetched unverified, compared, and only then trusted).

Commit point: the write of ``node.pem``, after CA and catalog. A crash before it leaves a node that is not enrolled and
a token that may be spent; the next enrolment needs a new token and finds the key again.
"""

from __future__ import annotations

import datetime as dt
import hmac
import re
import ssl
import warnings
from pathlib import Path
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InsecureRequestWarning

from farshore import durable
from farshore.errors import Forbidden, Invalid, Permanent
from farshore.node import client
from farshore.node.config import NodeConfig
from farshore.node.identity import Catalog, Identity, fingerprint, load_grant_key, of

_TOKEN: Final = re.compile(r"^fsn_[A-Za-z0-9-]+_[A-Za-z0-9_-]+$")
_PIN: Final = re.compile(r"^(?:sha256:)?([0-9a-fA-F:]{64,95})$")


def enrol(
    config: NodeConfig,
    token: str,
    *,
    ca_file: Path | None = None,
    ca_sha256: str | None = None,
    now: dt.datetime,
) -> bool:
    """Make this machine the node of ``config``; False if it is already, with a valid certificate.

    Raises:
        Invalid: the token or the pin has no such form, or neither a CA file nor a pin is given.
        Unauthenticated: the token is unknown, spent or expired.
        Forbidden: the control plane is not the one that was pinned.
        Unavailable: it does not answer; nothing was changed.
    """
    identity = of(config)
    if identity.is_enrolled(now):
        return False
    if not _TOKEN.fullmatch(token):
        raise Invalid("the enrolment token has not the form fsn_<id>_<secret>", code="token-invalid", field="token")
    ca_pem = _find_ca(config, ca_file or config.ca_path, ca_sha256)
    durable.make_dir(config.state_dir)
    config.state_dir.chmod(0o700)
    request = {"token": token, "csr_pem": identity.request_pem(), "node": config.name, "site": config.site}
    offered_path = config.state_dir / "ca.offered.pem"
    durable.write(offered_path, ca_pem)
    try:
        with client.open_session(offered_path) as session:
            reply = client.call(session, "POST", f"{config.control_url}/node/v1/enrol", request)
    finally:
        durable.remove(offered_path)
    _keep(identity, reply, ca_pem, now)
    return True


def _keep(identity: Identity, reply: Any, ca_pem: bytes, now: dt.datetime) -> None:
    try:
        certificate_pem = str(reply["certificate_pem"])
        catalog = Catalog(str(reply["catalog_id"]), int(reply["generation"]), str(reply["grant_key_pem"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Permanent("the control plane's answer to the enrolment is incomplete", code="bad-reply") from error
    load_grant_key(catalog.grant_key_pem)
    durable.write(identity.ca_path, ca_pem)
    if identity.catalog_path.exists():
        known = identity.catalog()
        if known.catalog_id == catalog.catalog_id and known.generation > catalog.generation:
            raise Forbidden(
                f"this node obeys generation {known.generation} of the catalog; the control plane is at "
                f"{catalog.generation}",
                code="generation-stale",
                hint="This control plane was replaced by another one; enrol with that.",
            )
    identity.keep_catalog(catalog)
    identity.accept(certificate_pem, now)


def _find_ca(config: NodeConfig, ca_file: Path | None, ca_sha256: str | None) -> bytes:
    """Return the CA certificate that is trusted from now on."""
    pin = _parse_pin(ca_sha256) if ca_sha256 else None
    if ca_file is not None:
        try:
            ca_pem = ca_file.read_bytes()
            found = fingerprint(ca_pem)
        except OSError as error:
            raise Invalid(f"cannot read the CA file: {error}", code="ca-unreadable", field="ca_file") from error
        except ValueError as error:
            raise Invalid(f"{str(ca_file)!r} holds no certificate", code="ca-invalid", field="ca_file") from error
    elif pin is not None:
        ca_pem = _fetch_ca(f"{config.control_url}/node/v1/ca")
        found = fingerprint(ca_pem)
    else:
        raise Invalid(
            "nothing tells which control plane to trust",
            code="ca-missing",
            field="ca_sha256",
            hint="Give --ca-file FILE or --ca-sha256 sha256:...; both come with the token.",
        )
    if pin is not None and not hmac.compare_digest(pin, found):
        raise Forbidden(
            f"the control plane at {config.control_url} has another CA ({found}) than the one that was named ({pin})",
            code="control-untrusted",
            hint="Check control_url; somebody may be in between.",
        )
    return ca_pem


def _parse_pin(text: str) -> str:
    match = _PIN.fullmatch(text.strip())
    digits = match[1].replace(":", "").lower() if match else ""
    if len(digits) != 64:
        raise Invalid(
            f"{text!r} is no SHA-256 of a certificate; write it as sha256:<64 hex digits>",
            code="ca-pin-invalid",
            field="ca_sha256",
        )
    return f"sha256:{digits}"


class _Unverified(HTTPAdapter):
    """Asks anybody. Only for what is compared with a pin before it is used."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().init_poolmanager(*args, ssl_context=context, **kwargs)


def _fetch_ca(url: str) -> bytes:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = False
        session.mount("https://", _Unverified())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)
            reply = client.call(session, "GET", url)
    ca_pem = str(reply.get("ca_pem", "") if isinstance(reply, dict) else "").encode()
    try:
        fingerprint(ca_pem)
    except ValueError as error:
        raise Permanent(f"{url} answered with no certificate", code="bad-reply") from error
    return ca_pem


def renew(identity: Identity, control: client.ControlClient, now: dt.datetime) -> bool:
    """Get a new certificate if two thirds of the old one's life are over; the key stays."""
    if now < identity.renew_at():
        return False
    identity.accept(control.renew(identity.request_pem()), now)
    return True
