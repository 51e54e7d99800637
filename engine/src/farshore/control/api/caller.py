"""What a route gets: who calls, and a way to change things exactly once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, Response
from sqlalchemy import delete

from farshore.control import audit
from farshore.control.auth.access import authorise
from farshore.control.auth.identity import Identity
from farshore.control.context import Context
from farshore.control.store.database import Transaction
from farshore.control.store.records import Idempotency
from farshore.errors import Conflict, Invalid

#: How long the answer to a request with a key is remembered.
KEPT_S: Final = 24 * 3600.0
CHANGED: Final = "X-Farshore-Changed"


@dataclass
class Answer:
    """What a change answers. ``secret``: the body is shown once and never stored. ``changed`` None: not said."""

    body: Any = None
    status: int = 200
    changed: bool | None = None
    secret: bool = False
    audit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Caller:
    """The request's context."""

    ctx: Context
    identity: Identity
    key: str
    fingerprint: str

    @property
    def actor(self) -> str:
        """The name in records of who did it."""
        return f"{self.identity.name} ({self.identity.token_id})"

    def change(self, action: str, subject: str, act: Callable[[Transaction], Answer]) -> Response:
        """Run ``act`` in one transaction with its audit entry and its remembered answer.

        A second request with the same ``Idempotency-Key`` gets the first one's answer; ``act`` does not run again.

        Raises:
            Invalid: the key was used for another request.
            Conflict: the first answer held a secret, which is not kept.
        """
        with self.ctx.store.write() as tx:
            if self.key:
                known = tx.get(Idempotency, (self.identity.token_id, self.key))
                if known is not None:
                    return self._again(known)
            answer = act(tx)
            if answer.changed is not False:
                audit.record(tx, self.actor, action, subject, **answer.audit)
            body = jsonable_encoder(answer.body)
            headers = {} if answer.changed is None else {CHANGED: "true" if answer.changed else "false"}
            if self.key:
                now = time.time()
                tx.execute(delete(Idempotency).where(Idempotency.at < now - KEPT_S))
                tx.add(
                    Idempotency(
                        actor=self.identity.token_id,
                        key=self.key,
                        fingerprint=self.fingerprint,
                        status=answer.status,
                        headers=headers,
                        body=None if answer.secret else {"body": body},
                        at=now,
                    )
                )
        return _respond(answer.status, body, headers)

    def _again(self, known: Idempotency) -> Response:
        if known.fingerprint != self.fingerprint:
            raise Invalid(
                "this Idempotency-Key was used for another request",
                code="idempotency-key-reused",
                field="Idempotency-Key",
                hint="Use a fresh key for each change.",
            )
        if known.body is None:
            raise Conflict(
                "this was done before, and its answer held a secret that is not kept",
                code="secret-shown-once",
                hint="Make another one with a fresh Idempotency-Key.",
            )
        return _respond(known.status, known.body["body"], {**known.headers, "Idempotency-Replayed": "true"})


def _respond(status: int, body: Any, headers: dict[str, str]) -> Response:
    if status == 204:
        return Response(status_code=204, headers=headers)
    return JSONResponse(body, status_code=status, headers=headers)


async def caller(request: Request, identity: Annotated[Identity, Depends(authorise)]) -> Caller:
    """Return the caller of ``request``, who was let in by the table of roles."""
    key = request.headers.get("idempotency-key", "")
    if len(key) > 128:
        raise Invalid("an Idempotency-Key has 128 characters at most", field="Idempotency-Key")
    body = await request.body()
    digest = hashlib.sha256(f"{request.method} {request.url.path}\n".encode() + body).hexdigest()
    return Caller(request.app.state.farshore, identity, key, digest)


Call = Annotated[Caller, Depends(caller)]
