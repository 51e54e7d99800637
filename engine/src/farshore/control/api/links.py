"""Links between sites: who listens, and how much of the way may be used."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.nearby import suggestion
from farshore.control.store.database import Transaction
from farshore.control.store.records import Site, SiteLink
from farshore.errors import Invalid
from farshore.model.base import Name
from farshore.model.link import SiteLink as Definition

router = APIRouter(prefix="/api/v1", tags=["site links"])

NamePath = Annotated[Name, Path()]


@router.get("/site-links", operation_id="list_site_links", response_model=schemas.Items[schemas.SiteLink])
def list_site_links(call: Call) -> dict[str, Any]:
    """Return all links between sites that were described."""
    with call.ctx.store.read() as session:
        return {"items": views.site_links(session)}


@router.get("/site-links/{source_site}/{target_site}", operation_id="get_site_link", response_model=schemas.SiteLink)
def get_site_link(call: Call, source_site: str, target_site: str) -> dict[str, Any]:
    """Return one link with what it allows now."""
    with call.ctx.store.read() as session:
        return views.site_link(session, source_site, target_site)


@router.put(
    "/site-links/{source_site}/{target_site}",
    operation_id="put_site_link",
    responses=schemas.answers(schemas.SiteLink, 200, 201),
)
def put_site_link(call: Call, source_site: NamePath, target_site: NamePath, body: Definition) -> Response:
    """Describe a link, or change it. Cycles that run get the new rate at once; who listens holds for the next ones."""

    def act(tx: Transaction) -> Answer:
        before = tx.get(SiteLink, (source_site, target_site))
        wanted = _change(tx, source_site, target_site, body)
        if before is None:
            tx.add(SiteLink(source_site=source_site, target_site=target_site, created_at=time.time(), **wanted))
        elif _shown(before) == wanted:
            return Answer(views.site_link(tx, source_site, target_site), changed=False)
        else:
            for key, value in wanted.items():
                setattr(before, key, value)
        tx.flush()
        _tell(tx, source_site, target_site)
        shown = views.site_link(tx, source_site, target_site)
        return Answer(shown, 201 if before is None else 200, changed=True, audit=wanted)

    return call.change("put_site_link", f"{source_site}/{target_site}", act)


@router.post(
    "/site-links/{source_site}/{target_site}:preview", operation_id="preview_site_link", response_model=schemas.Preview
)
def preview_site_link(call: Call, source_site: NamePath, target_site: NamePath, body: Definition) -> dict[str, Any]:
    """Return what ``put_site_link`` would change."""
    with call.ctx.store.read() as session:
        row = session.get(SiteLink, (source_site, target_site))
        before = _shown(row) if row else None
        after = _change(session, source_site, target_site, body)
        return {"changed": before != after, "before": before, "after": after, "warnings": []}


@router.delete("/site-links/{source_site}/{target_site}", operation_id="delete_site_link", status_code=204)
def delete_site_link(call: Call, source_site: str, target_site: str) -> Response:
    """Forget a link: from now on the source site's setting and no limit hold."""

    def act(tx: Transaction) -> Answer:
        row = tx.get(SiteLink, (source_site, target_site))
        if row is None:
            return Answer(status=204, changed=False)
        tx.delete(row)
        _tell(tx, source_site, target_site)
        return Answer(status=204, changed=True)

    return call.change("delete_site_link", f"{source_site}/{target_site}", act)


def _shown(row: SiteLink) -> dict[str, Any]:
    return {"data_listen": row.data_listen, "bandwidth": row.bandwidth}


def _change(session: Session, source_site: str, target_site: str, body: Definition) -> dict[str, Any]:
    if source_site == target_site:
        raise Invalid(
            f"a link leads from one site to another, not from {source_site!r} to itself",
            field="target_site",
            hint="Name two sites.",
        )
    known = session.scalars(select(Site.name)).all()
    for field, name in (("source_site", source_site), ("target_site", target_site)):
        if name not in known:
            raise Invalid(
                f"there is no site {name!r}",
                code="site-unknown",
                field=field,
                hint=f"{suggestion(name, known)} Register it first: `farshore site add NAME`.",
            )
    return body.model_dump(mode="json")


def _tell(tx: Transaction, *sites: str) -> None:
    for site in sites:
        tx.changed("site", site)
        tx.wake(site)
