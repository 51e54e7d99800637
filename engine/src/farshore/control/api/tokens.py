"""Tokens of people and programs, and the audit trail."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import func, select

from farshore.control import views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.audit import first_break
from farshore.control.auth import tokens
from farshore.control.auth.tokens import Role
from farshore.control.nearby import unknown
from farshore.control.store.database import Transaction
from farshore.control.store.records import Token
from farshore.control.views.trail import token as show
from farshore.errors import Conflict
from farshore.model.base import Duration, Model, Name

router = APIRouter(prefix="/api/v1", tags=["access"])

Limit = Annotated[int, Query(ge=1, le=1000)]


class TokenRequest(Model):
    """A token to be made. ``ttl_s`` None: it does not expire."""

    name: Name
    role: Role
    ttl_s: Annotated[Duration, Field(gt=0, le=10 * 365 * 86400)] | None = 30 * 86400.0


@router.get("/tokens", operation_id="list_tokens", response_model=schemas.Items[schemas.Token])
def list_tokens(call: Call) -> dict[str, Any]:
    """Return all tokens, without their secrets."""
    with call.ctx.store.read() as session:
        return {"items": views.tokens(session)}


@router.post("/tokens", operation_id="create_token", responses=schemas.answers(schemas.NewToken, 201), status_code=201)
def create_token(call: Call, body: TokenRequest) -> Response:
    """Make a token. Its text is in this answer and nowhere else."""

    def act(tx: Transaction) -> Answer:
        issued = tokens.issue(tokens.API)
        now = time.time()
        row = Token(
            token_id=issued.token_id,
            name=body.name,
            role=body.role,
            digest=issued.digest,
            created_at=now,
            expires_at=now + body.ttl_s if body.ttl_s else None,
        )
        tx.add(row)
        tx.changed("token", issued.token_id)
        return Answer(
            {"token": issued.text, **show(row)},
            201,
            changed=True,
            secret=True,
            audit={"name": body.name, "role": body.role, "token_id": issued.token_id},
        )

    return call.change("create_token", body.name, act)


@router.delete("/tokens/{token_id}", operation_id="delete_token", status_code=204)
def delete_token(call: Call, token_id: str) -> Response:
    """Revoke a token."""

    def act(tx: Transaction) -> Answer:
        row = tx.get(Token, token_id)
        if row is None:
            raise unknown("token", token_id, tx.scalars(select(Token.token_id)), field="token_id")
        if row.revoked_at is not None:
            return Answer(status=204, changed=False)
        now = time.time()
        others = tx.scalar(
            select(func.count())
            .select_from(Token)
            .where(
                Token.role == "admin",
                Token.revoked_at.is_(None),
                Token.token_id != token_id,
                Token.expires_at.is_(None) | (Token.expires_at > now),
            )
        )
        if row.role == "admin" and not others:
            raise Conflict("this is the last admin token", code="last-admin", hint="Make another admin token before.")
        row.revoked_at = now
        tx.changed("token", token_id)
        return Answer(status=204, changed=True)

    return call.change("delete_token", token_id, act)


@router.get("/audit", operation_id="list_audit", response_model=schemas.AuditTrail)
def list_audit(call: Call, limit: Limit = 100) -> dict[str, Any]:
    """Return the newest entries of the audit trail; ``chain_broken_at`` names the first that does not follow."""
    with call.ctx.store.read() as session:
        return {"items": views.audit(session, limit), "chain_broken_at": first_break(session)}
