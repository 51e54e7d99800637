"""Grants: what admits the opening of one replication session.

A grant is made and signed by the control plane (Ed25519) and checked by both nodes. It ends by its own validity only
for the *opening*: an open session lives until a higher term or a revocation.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from farshore.errors import Fenced, Forbidden
from farshore.model.base import Model

#: As the key of a granted disk: all disks of the point, to be listed. Only in grants of mode ``inspect``.
ALL_DISKS: Final = "*"


class GrantDisk(Model):
    """One disk that may be read. ``base`` names the source point that the target already holds, if any."""

    disk_key: str
    size_bytes: int
    source_point: str
    base: str | None = None


class Grant(Model):
    """The right to open one session between two nodes. Times are seconds since the epoch.

    Mode ``inspect`` lets the target learn which disks a point has, and of which size; it reads nothing.
    """

    grant_id: str
    catalog_id: str
    generation: int
    plan: str
    group_id: str
    session_id: str
    source_site: str
    target_site: str
    source_node: str
    target_node: str
    source_thumbprint: str
    target_thumbprint: str
    epoch: int
    term: int
    disks: tuple[GrantDisk, ...]
    mode: Literal["replicate", "inspect"] = "replicate"
    not_before: float
    not_after: float


def sign(grant: Grant, key: Ed25519PrivateKey) -> str:
    """Return the grant as text: base64url of its canonical JSON, a dot, base64url of the signature over it."""
    body = json.dumps(grant.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()
    return f"{_b64(body)}.{_b64(key.sign(body))}"


def verify(text: str, key: Ed25519PublicKey, *, now: float, leeway_s: float = 120.0) -> Grant:
    """Return the grant in ``text`` if ``key`` signed it and ``now`` (seconds since the epoch) lies in its validity.

    Raises:
        Forbidden: wrong form or signature.
        Fenced: not valid any more, or not yet.
    """
    try:
        body, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split("."))
        key.verify(signature, body)
        grant = Grant.model_validate_json(body)
    except (ValueError, binascii.Error, InvalidSignature, ValidationError) as error:
        raise Forbidden("the grant is not one that this control plane signed", code="grant-invalid") from error
    if not grant.not_before - leeway_s <= now <= grant.not_after + leeway_s:
        raise Fenced(
            "the grant is out of its time of validity",
            code="grant-expired",
            hint="Compare the clocks of control plane and nodes.",
            now=now,
            not_before=grant.not_before,
            not_after=grant.not_after,
        )
    return grant


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
