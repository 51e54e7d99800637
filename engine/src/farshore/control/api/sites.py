"""Sites and their nodes."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from farshore.control import ids, tasks, views
from farshore.control.api import schemas
from farshore.control.api.caller import Answer, Call
from farshore.control.auth import tokens
from farshore.control.clock import iso
from farshore.control.context import Context
from farshore.control.nearby import suggestion
from farshore.control.store.database import Transaction
from farshore.control.store.records import DeniedCertificate, EnrolToken, Node, Site, Task
from farshore.control.store.records import Plan as PlanRecord
from farshore.control.views.places import site_state
from farshore.errors import Conflict, Invalid, Unavailable
from farshore.model.base import Model, Name, Report
from farshore.model.plan import Plan as Definition
from farshore.model.task import Empty

router = APIRouter(prefix="/api/v1", tags=["sites"])

NamePath = Annotated[Name, Path()]
ENROL_TTL_S = 3600.0
#: How long a person waits for a node's answer.
ANSWER_TIMEOUT_S = 60.0


class SiteRequest(Model):
    """A site as it should be."""

    platform: Literal["aws", "kvm", "file", "simulated"]
    description: str = Field("", max_length=1000)
    data_listen: Literal["source", "target"] = Field("source", description="which side of a link listens")


class NodeRequest(Model):
    """A node as it should be. ``data_address`` is where other nodes reach its data listener."""

    site: Name
    roles: tuple[Literal["replication", "recovery"], ...] = Field(("replication", "recovery"), min_length=1)
    data_address: str = Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$", max_length=260)


@router.get("/sites", operation_id="list_sites", response_model=schemas.Items[schemas.Site])
def list_sites(call: Call) -> dict[str, Any]:
    """Return all sites."""
    with call.ctx.store.read() as session:
        return {"items": views.sites(session)}


@router.get("/sites/{name}", operation_id="get_site", response_model=schemas.Site)
def get_site(call: Call, name: str) -> dict[str, Any]:
    """Return one site with what its node found there."""
    with call.ctx.store.read() as session:
        return views.site(session, name)


@router.put(
    "/sites/{name}", operation_id="put_site", responses=schemas.answers(schemas.Site, 200, 201), status_code=200
)
def put_site(call: Call, name: NamePath, body: SiteRequest) -> Response:
    """Register a site, or change it."""

    def act(tx: Transaction) -> Answer:
        before = tx.get(Site, name)
        wanted = _site_change(tx, name, body)
        if before is None:
            tx.add(Site(name=name, created_at=time.time(), **wanted))
        else:
            changed = _shown(before) != wanted
            if not changed:
                return Answer(views.site(tx, name), changed=False)
            for key, value in wanted.items():
                setattr(before, key, value)
        tx.flush()
        tx.changed("site", name)
        return Answer(views.site(tx, name), 201 if before is None else 200, changed=True, audit=wanted)

    return call.change("put_site", name, act)


@router.post("/sites/{name}:preview", operation_id="preview_site", response_model=schemas.Preview)
def preview_site(call: Call, name: NamePath, body: SiteRequest) -> dict[str, Any]:
    """Return what ``put_site`` would change."""
    with call.ctx.store.read() as session:
        row = session.get(Site, name)
        before = _shown(row) if row else None
        after = _site_change(session, name, body)
        return {"changed": before != after, "before": before, "after": after, "warnings": []}


def _shown(row: Site) -> dict[str, Any]:
    return {"platform": row.platform, "description": row.description, "data_listen": row.data_listen}


def _site_change(session: Session, name: str, body: SiteRequest) -> dict[str, Any]:
    row = session.get(Site, name)
    if row is not None and row.platform != body.platform and _used_by(session, name):
        raise Conflict(
            f"site {name!r} is of platform {row.platform!r} and in use by {_used_by(session, name)}",
            code="site-in-use",
            field="platform",
            hint="Remove its nodes and plans first, or register another site.",
        )
    return body.model_dump()


def _used_by(session: Session, name: str) -> str:
    nodes = [f"node {node}" for node in session.scalars(select(Node.name).where(Node.site == name))]
    plans = []
    for plan in session.scalars(select(PlanRecord)):
        definition = Definition.model_validate(plan.definition)
        if name in {definition.source_site, definition.target_site}:
            plans.append(f"plan {plan.name}")
    return ", ".join(nodes + plans)


@router.delete("/sites/{name}", operation_id="delete_site", status_code=204)
def delete_site(call: Call, name: str) -> Response:
    """Remove a site that nothing uses."""

    def act(tx: Transaction) -> Answer:
        row = tx.get(Site, name)
        if row is None:
            return Answer(status=204, changed=False)
        used = _used_by(tx, name)
        if used:
            raise Conflict(f"site {name!r} is in use by {used}", code="site-in-use", hint="Remove these first.")
        tx.delete(row)
        tx.changed("site", name)
        return Answer(status=204, changed=True)

    return call.change("delete_site", name, act)


@router.post("/sites/{name}:check", operation_id="check_site", response_model=schemas.Findings)
async def check_site(call: Call, name: str) -> dict[str, Any]:
    """Let the site's node prove that what is needed works there, and return its findings (waits up to 60 s)."""
    task = await ask(call.ctx, name, "check", call.actor)
    return {"findings": (task.result or {}).get("findings", [])}


@router.post("/sites/{name}:refresh", operation_id="refresh_site", response_model=schemas.Site)
async def refresh_site(call: Call, name: str) -> dict[str, Any]:
    """Read the site's inventory anew and return the site (waits up to 60 s)."""
    await ask(call.ctx, name, "inventory", call.actor)

    def show() -> dict[str, Any]:
        with call.ctx.store.read() as session:
            return views.site(session, name)

    return await asyncio.to_thread(show)


async def ask(ctx: Context, name: str, kind: str, actor: str, params: Report = Empty()) -> Task:  # noqa: B008 - frozen
    """Give the site's node a task and wait for its end.

    Raises:
        Unavailable: no node answers.
        FarshoreError: what the node reports.
    """

    def insert() -> str:
        with ctx.store.write() as tx:
            views.site(tx, name)
            state = site_state(tx, name)
            if state != "online":
                raise Unavailable(
                    f"no node of site {name!r} answers" if state == "offline" else f"site {name!r} has no node",
                    code=f"site-{state}",
                    hint="Start it: `farshore node start --config FILE`."
                    if state == "offline"
                    else "Register and enrol one: `farshore node add NAME`, `farshore node token NAME`.",
                )
            return tasks.ensure(tx, f"{kind}/{name}/{ids.short()}", kind, name, params, step=actor).task_id

    def look(task_id: str) -> Task:
        with ctx.store.read() as session:
            return session.get_one(Task, task_id)

    # Subscribed before the task exists, so that no end is missed.
    async with asyncio.timeout(ANSWER_TIMEOUT_S) as limit:
        try:
            changes = ctx.bus.changes()
            waiting = asyncio.ensure_future(anext(changes, None))
            await asyncio.sleep(0)
            task_id = await asyncio.to_thread(insert)
            while (task := await asyncio.to_thread(look, task_id)).state not in tasks.ENDED:
                await waiting
                if ctx.bus.closing:
                    raise Unavailable("the control plane stops", code="stopping")
                waiting = asyncio.ensure_future(anext(changes, None))
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable(
                f"the node of site {name!r} did not answer within {ANSWER_TIMEOUT_S:.0f} s",
                code="site-silent",
                hint="Look at the node's log.",
            ) from None
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await changes.aclose()  # type: ignore[attr-defined]
    if task.state != "succeeded":
        raise tasks.failure(task)
    return task


@router.get("/nodes", operation_id="list_nodes", response_model=schemas.Items[schemas.Node], tags=["nodes"])
def list_nodes(call: Call) -> dict[str, Any]:
    """Return all nodes."""
    with call.ctx.store.read() as session:
        return {"items": views.nodes(session)}


@router.get("/nodes/{name}", operation_id="get_node", response_model=schemas.Node, tags=["nodes"])
def get_node(call: Call, name: str) -> dict[str, Any]:
    """Return one node."""
    with call.ctx.store.read() as session:
        return views.node(session, name)


@router.put("/nodes/{name}", operation_id="put_node", responses=schemas.answers(schemas.Node, 200, 201), tags=["nodes"])
def put_node(call: Call, name: NamePath, body: NodeRequest) -> Response:
    """Register a node, or change it. It takes part once it is enrolled."""

    def act(tx: Transaction) -> Answer:
        before = tx.get(Node, name)
        wanted = _node_change(tx, name, body)
        if before is None:
            tx.add(Node(name=name, created_at=time.time(), generation=0, **wanted))
        elif _node_shown(before) == wanted:
            return Answer(views.node(tx, name), changed=False)
        else:
            for key, value in wanted.items():
                setattr(before, key, value)
        tx.flush()
        tx.changed("node", name)
        tx.changed("site", body.site)
        return Answer(views.node(tx, name), 201 if before is None else 200, changed=True, audit=wanted)

    return call.change("put_node", name, act)


@router.post("/nodes/{name}:preview", operation_id="preview_node", response_model=schemas.Preview, tags=["nodes"])
def preview_node(call: Call, name: NamePath, body: NodeRequest) -> dict[str, Any]:
    """Return what ``put_node`` would change."""
    with call.ctx.store.read() as session:
        row = session.get(Node, name)
        before = _node_shown(row) if row else None
        after = _node_change(session, name, body)
        return {"changed": before != after, "before": before, "after": after, "warnings": []}


def _node_shown(row: Node) -> dict[str, Any]:
    return {"site": row.site, "roles": sorted(row.roles), "data_address": row.data_address}


def _node_change(session: Session, name: str, body: NodeRequest) -> dict[str, Any]:
    known = session.scalars(select(Site.name)).all()
    if body.site not in known:
        raise Invalid(
            f"there is no site {body.site!r}",
            code="site-unknown",
            field="site",
            hint=f"{suggestion(body.site, known)} Register it first: `farshore site add NAME`.",
        )
    port = int(body.data_address.rpartition(":")[2])
    if not 1 <= port <= 65535:
        raise Invalid(f"{port} is no port", field="data_address", hint="Write it as host:port.")
    row = session.get(Node, name)
    if row is not None and row.site != body.site and row.thumbprint is not None:
        raise Conflict(
            f"node {name!r} is enrolled for site {row.site!r}",
            code="node-enrolled",
            field="site",
            hint="Delete the node, register it for the other site and enrol it again.",
        )
    return {"site": body.site, "roles": sorted(set(body.roles)), "data_address": body.data_address}


@router.post(
    "/nodes/{name}:token",
    operation_id="create_node_token",
    responses=schemas.answers(schemas.NodeToken, 201),
    tags=["nodes"],
    status_code=201,
)
def create_node_token(call: Call, name: str) -> Response:
    """Make a token that admits this node once within the hour. Earlier unused ones are void from now on."""

    def act(tx: Transaction) -> Answer:
        views.node(tx, name)
        now = time.time()
        for old in tx.scalars(select(EnrolToken).where(EnrolToken.node == name, EnrolToken.used_at.is_(None))):
            old.expires_at = min(old.expires_at, now)
        issued = tokens.issue(tokens.ENROL)
        expires_at = now + ENROL_TTL_S
        tx.add(EnrolToken(token_id=issued.token_id, node=name, digest=issued.digest, expires_at=expires_at))
        body = {
            "token": issued.text,
            "expires_at": iso(expires_at),
            "ca_pem": call.ctx.authority.pem,
            "ca_sha256": call.ctx.authority.fingerprint,
            "node_url": call.ctx.home.node_url,
        }
        return Answer(body, 201, changed=True, secret=True, audit={"token_id": issued.token_id})

    return call.change("create_node_token", name, act)


@router.delete("/nodes/{name}", operation_id="delete_node", tags=["nodes"], status_code=204)
def delete_node(call: Call, name: str) -> Response:
    """Remove a node; its certificate is refused from now on, its tasks go to others of its site."""

    def act(tx: Transaction) -> Answer:
        row = tx.get(Node, name)
        if row is None:
            return Answer(status=204, changed=False)
        now = time.time()
        for thumbprint in {row.thumbprint, row.next_thumbprint} - {None}:
            tx.merge(DeniedCertificate(thumbprint=thumbprint, node=name, reason="the node was removed", at=now))
        for task in tx.scalars(
            select(Task).where(Task.state.in_(("queued", "assigned")), or_(Task.node == name, Task.pinned_node == name))
        ):
            task.term += 1
            task.state, task.node, task.incarnation, task.pinned_node = "queued", None, None, None
        tx.delete(row)
        tx.changed("node", name)
        tx.changed("site", row.site)
        tx.wake(row.site)
        return Answer(status=204, changed=True)

    return call.change("delete_node", name, act)
