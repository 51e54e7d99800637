"""Bearer tokens: ``<kind>_<id>_<secret>``. Only the SHA-256 of the secret is stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final, Literal, get_args

from farshore.control import ids

Role = Literal["viewer", "operator", "recovery-admin", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

#: Tokens of people, modules and the command line.
API: Final = "fsh"
#: Single-use tokens that admit a node.
ENROL: Final = "fsn"


@dataclass(frozen=True, slots=True)
class Issued:
    """A fresh token. ``text`` is shown once; ``digest`` is what is stored."""

    token_id: str
    text: str
    digest: str


def issue(kind: str) -> Issued:
    """Return a fresh token with 256 random bits, so that a plain hash is enough to store it."""
    token_id, secret = ids.short(10), secrets.token_hex(32)
    return Issued(token_id, f"{kind}_{token_id}_{secret}", digest(secret))


def digest(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split(kind: str, text: str) -> tuple[str, str] | None:
    """Return a token's id and secret, None if ``text`` has not the form of one."""
    parts = text.split("_", 2)
    if len(parts) != 3 or parts[0] != kind or not parts[1].isalnum() or not parts[2]:
        return None
    return parts[1], parts[2]


def matches(secret: str, stored: str) -> bool:
    """Say, in constant time, whether ``secret`` is the one whose digest is stored."""
    return hmac.compare_digest(digest(secret), stored)


def covers(role: str, least: str) -> bool:
    """Say whether ``role`` may do what asks for at least ``least``."""
    return role in ROLES and least in ROLES and ROLES.index(role) >= ROLES.index(least)
