"""The catalogue itself: its generation, the bundles that sites keep of it, and whether it is what the sites hold."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from farshore.control import catalog, views
from farshore.control.api import schemas
from farshore.control.api.caller import Call
from farshore.control.api.sites import ask
from farshore.control.store import settings
from farshore.control.views.catalog import catalog as catalog_view
from farshore.model.base import Model
from farshore.model.task import CatalogCheckParams, CatalogCheckResult

router = APIRouter(prefix="/api/v1", tags=["catalog"])


class CatalogCheck(Model):
    """``adopt``: first record the manifests of the site that the catalogue does not know."""

    adopt: bool = Field(default=False)


@router.get("/catalog", operation_id="get_catalog", response_model=schemas.Catalog)
def get_catalog(call: Call) -> dict[str, Any]:
    """Return the catalogue's generation, and which site keeps which bundle of it."""
    with call.ctx.store.read() as session:
        return catalog_view(session, key_is_here=call.ctx.home.recovery_key.exists())


@router.post("/sites/{name}:catalog-check", operation_id="check_catalog", response_model=schemas.CatalogFindings)
async def check_catalog(call: Call, name: str, body: CatalogCheck) -> dict[str, Any]:
    """Compare catalogue, manifests and native points of a site, and name the differences (waits up to 60 s)."""
    if body.adopt:
        await ask(call.ctx, name, "catalog-scan", call.actor)

    def owner() -> str:
        with call.ctx.store.read() as session:
            views.site(session, name)
            return settings.catalog_id(session)

    params = CatalogCheckParams(catalog_id=await asyncio.to_thread(owner))
    task = await ask(call.ctx, name, "catalog-check", call.actor, params)
    found = CatalogCheckResult.model_validate(task.result or {})

    def compare() -> dict[str, Any]:
        with call.ctx.store.read() as session:
            findings = catalog.compare(session, name, found)
        return {
            "site": name,
            "agrees": all(finding.severity == "info" for finding in findings),
            "manifests": len(found.manifests),
            "foreign": found.foreign,
            "drafts": len(found.drafts),
            "findings": [finding.model_dump() for finding in findings],
        }

    return await asyncio.to_thread(compare)
