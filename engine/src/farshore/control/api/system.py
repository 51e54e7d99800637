"""Health, who am I, the interface's own description, and the stream of changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from farshore import __version__
from farshore.control.api import schemas
from farshore.control.api.caller import Call
from farshore.control.auth.access import authorise
from farshore.control.auth.identity import Identity
from farshore.control.context import Context
from farshore.control.store import settings

router = APIRouter(prefix="/api/v1", tags=["system"])

#: Kinds of change that are for the scheduler only.
_INTERNAL = {"task"}


@router.get("/health", operation_id="get_health", response_model=schemas.Health)
def health(request: Request, _identity: Annotated[Identity, Depends(authorise)]) -> dict[str, Any]:
    """Say that the control plane answers and its records can be read."""
    ctx: Context = request.app.state.farshore
    with ctx.store.read() as session:
        return {
            "status": "ok",
            "version": __version__,
            "catalog_id": settings.catalog_id(session),
            "generation": settings.generation(session),
        }


@router.get("/whoami", operation_id="get_whoami", response_model=schemas.Identity)
def whoami(call: Call) -> dict[str, str]:
    """Return whose token this is."""
    return {"token_id": call.identity.token_id, "name": call.identity.name, "role": call.identity.role}


@router.get("/openapi.json", operation_id="get_openapi")
def openapi(request: Request, _call: Call) -> dict[str, Any]:
    """Return the description of this interface (OpenAPI 3.1)."""
    description: dict[str, Any] = request.app.openapi()
    return description


@router.get("/events", operation_id="watch_events", response_class=EventSourceResponse)
async def events(call: Call) -> EventSourceResponse:
    """Stream changes: ``event: change``, ``data: {"kind": ..., "name": ...}``; kind ``all`` means: read anew."""

    async def stream() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(event="hello", data="{}")
        async for kind, name in call.ctx.bus.changes():
            if kind not in _INTERNAL:
                yield ServerSentEvent(event="change", data=json.dumps({"kind": kind, "name": name}))
                await asyncio.sleep(0)

    return EventSourceResponse(stream(), ping=15)
