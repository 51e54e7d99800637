"""The audit trail and the tokens."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.clock import iso
from farshore.control.store.records import Audit, Token


def audit(session: Session, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest entries, newest first."""
    return [
        {
            "seq": row.seq,
            "at": iso(row.at),
            "at_s": row.at,
            "actor": row.actor,
            "action": row.action,
            "subject": row.subject,
            "detail": row.detail,
            "previous": row.previous,
            "digest": row.digest,
        }
        for row in session.scalars(select(Audit).order_by(Audit.seq.desc()).limit(limit))
    ]


def tokens(session: Session) -> list[dict[str, Any]]:
    """Return all tokens without their secrets, by age."""
    return [token(row) for row in session.scalars(select(Token).order_by(Token.created_at, Token.token_id))]


def token(row: Token) -> dict[str, Any]:
    """Return what may be shown of a token."""
    return {
        "token_id": row.token_id,
        "name": row.name,
        "role": row.role,
        "created_at": iso(row.created_at),
        "expires_at": iso(row.expires_at),
        "revoked_at": iso(row.revoked_at),
        "last_used_at": iso(row.last_used_at),
    }
