"""The interface of nodes, ``/node/v1``: enrolment, polls, reports. All but enrolment need the node's certificate."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy.orm import Session

from farshore.control import audit, catalog, tasks
from farshore.control.auth import tokens
from farshore.control.auth.ca import Issued, PeerIdentity
from farshore.control.auth.identity import admit, mismatch, peer_of
from farshore.control.context import Context
from farshore.control.planning import bundles
from farshore.control.store import settings
from farshore.control.store.records import DeniedCertificate, EnrolToken, Node
from farshore.errors import Fenced, NotFound, Unauthenticated
from farshore.model.base import Report
from farshore.model.task import PollReply, PollRequest, Progress, Refusal, ReportReply, ReportRequest

#: A poll that waits looks no more often than this.
_GATHER_S: Final = 0.05

router = APIRouter(prefix="/node/v1", tags=["nodes"])


class EnrolRequest(Report):
    """A node asks for its certificate. Names in the request are checked against the token, never taken over."""

    token: str = Field(max_length=256)
    csr_pem: str = Field(max_length=16384)
    node: str
    site: str


class RenewRequest(Report):
    """A node asks for a new certificate over the old one."""

    csr_pem: str = Field(max_length=16384)


class Certificate(Report):
    """What a node needs to take part."""

    certificate_pem: str
    ca_pem: str
    grant_key_pem: str
    catalog_id: str
    generation: int


class ProgressRequest(Report):
    """How far a task is."""

    term: int
    progress: Progress


async def _peer(request: Request) -> PeerIdentity:
    return peer_of(request)


#: Whose certificate it is; the transaction of a call begins with :func:`admit`, which says whether it counts.
Peer = Annotated[PeerIdentity, Depends(_peer)]


class CaCertificate(Report):
    """The CA that signs this control plane and its nodes."""

    ca_pem: str


@router.get("/ca", operation_id="get_ca")
def ca(request: Request) -> CaCertificate:
    """Return the CA's certificate; a node compares it with the SHA-256 that came with its token before it trusts it."""
    ctx: Context = request.app.state.farshore
    return CaCertificate(ca_pem=ctx.authority.pem)


@router.post("/enrol", operation_id="enrol_node")
def enrol(request: Request, body: EnrolRequest) -> Certificate:
    """Trade a single-use token and a certificate request for a certificate."""
    ctx: Context = request.app.state.farshore
    parts = tokens.split(tokens.ENROL, body.token)
    now = time.time()
    with ctx.store.write() as tx:
        token = tx.get(EnrolToken, parts[0]) if parts else None
        if parts is None or token is None or not tokens.matches(parts[1], token.digest):
            raise Unauthenticated(
                "the enrolment token is not valid",
                code="token-invalid",
                hint="Make one with `farshore node token NAME`.",
            )
        if token.used_at is not None:
            raise Unauthenticated(
                "the enrolment token was used already", code="token-used", hint="Each token admits one node once."
            )
        if token.expires_at <= now:
            raise Unauthenticated(
                "the enrolment token has expired", code="token-expired", hint="Make a new one; it is valid for 1 h."
            )
        node = tx.get_one(Node, token.node)
        if (body.site, body.node) != (node.site, node.name):
            raise mismatch(node.site, node.name, body.site, body.node)
        issued = ctx.authority.sign_node(body.csr_pem, node.site, node.name)
        token.used_at = now
        for old in {node.thumbprint, node.next_thumbprint} - {None}:
            tx.add(DeniedCertificate(thumbprint=old, node=node.name, reason="replaced by a new enrolment", at=now))
        node.thumbprint, node.serial, node.not_after = issued.thumbprint, issued.serial, issued.not_after
        node.next_thumbprint = node.next_serial = node.next_not_after = None
        tx.changed("node", node.name)
        audit.record(tx, f"node {node.name}", "enrol_node", node.name, thumbprint=issued.thumbprint)
        return _certificate(tx, ctx, issued)


@router.post("/renew", operation_id="renew_certificate")
def renew(request: Request, body: RenewRequest, peer: Peer) -> Certificate:
    """Return a new certificate for the same node; the old one is refused once the new one was used."""
    ctx: Context = request.app.state.farshore
    with ctx.store.write() as tx:
        node = admit(tx, peer)
        issued = ctx.authority.sign_node(body.csr_pem, node.site, node.name)
        node.next_thumbprint, node.next_serial, node.next_not_after = issued.thumbprint, issued.serial, issued.not_after
        audit.record(tx, f"node {node.name}", "renew_certificate", node.name, thumbprint=issued.thumbprint)
        return _certificate(tx, ctx, issued)


class Bundle(Report):
    """The files of a plan's hooks: a tar file, as base64."""

    content: str


@router.get("/bundles/{digest}", operation_id="get_hook_bundle")
def hook_bundle(request: Request, digest: str, peer: Peer) -> Bundle:
    """Return the files that a task of this node needs, and no others."""
    ctx: Context = request.app.state.farshore
    with ctx.store.write() as tx:
        content = bundles.for_node(tx, digest, admit(tx, peer).name)
    return Bundle(content=base64.b64encode(content).decode())


def _certificate(session: Session, ctx: Context, issued: Issued) -> Certificate:
    return Certificate(
        certificate_pem=issued.pem,
        ca_pem=ctx.authority.pem,
        grant_key_pem=ctx.grant_key_pem,
        catalog_id=settings.catalog_id(session),
        generation=settings.generation(session),
    )


@router.post("/poll", operation_id="poll")
async def poll(request: Request, body: PollRequest, peer: Peer) -> PollReply:
    """Wait for work. The call is the node's sign of life too."""
    ctx: Context = request.app.state.farshore
    deadline = time.monotonic() + min(body.wait_s, tasks.LONGEST_POLL_S)
    turn: int | None = None
    while True:
        version = ctx.bus.version(peer.site)
        if turn is not None and (not ctx.bus.is_current(peer.node, turn) or await request.is_disconnected()):
            return PollReply()  # a later poll of the node, or nobody, would get what this one is given
        looked = time.monotonic()
        reply, turn = await asyncio.to_thread(_poll_once, ctx, peer, body, turn)
        remaining_s = deadline - time.monotonic()
        news = reply.tasks or reply.cancel or reply.standing != body.standing
        if news or remaining_s <= 0 or ctx.bus.closing:
            return reply
        while True:
            if not await ctx.bus.work(peer.site, version, deadline - time.monotonic()):
                return reply
            # A busy site wakes its nodes with each end of a task: what comes within a moment is looked at together.
            await asyncio.sleep(looked + _GATHER_S - time.monotonic())
            seen, version = version, ctx.bus.version(peer.site)
            if version.news != seen.news or await asyncio.to_thread(_has_room, ctx, peer.node, body):
                break
            looked = time.monotonic()


def _has_room(ctx: Context, node: str, body: PollRequest) -> bool:
    with ctx.store.read() as session:
        return tasks.has_room(session, node, body)


def _poll_once(ctx: Context, peer: PeerIdentity, body: PollRequest, turn: int | None) -> tuple[PollReply, int]:
    """Look for work; return with it the poll's turn, which is new where ``turn`` is None."""
    if body.node != peer.node:
        raise mismatch(peer.site, peer.node, peer.site, body.node)
    try:
        with ctx.store.write() as tx:
            node = admit(tx, peer)
            first, turn = turn is None, turn if turn is not None else ctx.bus.begin_poll(node.name)
            return tasks.poll(tx, ctx, node, body, first=first), turn
    except Fenced as error:
        if error.code == "generation-fenced":
            with ctx.store.write() as tx:
                catalog.superseded(tx, peer.node, body.generation)
        raise


@router.post("/tasks/{task_id}/progress", operation_id="report_progress", status_code=204)
def progress(request: Request, task_id: str, body: ProgressRequest, peer: Peer) -> Response:
    """Tell how far a task is."""
    ctx: Context = request.app.state.farshore
    with ctx.store.write() as tx:
        tasks.progress(tx, task_id, admit(tx, peer).name, body.term, body.progress)
    return Response(status_code=204)


@router.post("/reports", operation_id="report_tasks")
def report(request: Request, body: ReportRequest, peer: Peer) -> ReportReply:
    """Tell that tasks have ended. Idempotent. A node with room is given the next ones of recoveries in the answer."""
    ctx: Context = request.app.state.farshore
    refused = []
    with ctx.store.write() as tx:
        node = admit(tx, peer)
        for ended in body.reports:
            try:
                tasks.report(tx, ended.task_id, node.name, ended, refills=body.room is not None)
            except (Fenced, NotFound) as error:  # found before anything was changed
                refused.append(Refusal(task_id=ended.task_id, code=error.code, message=error.message))
        given = tasks.more(tx, ctx, node, body.room) if body.room is not None else ()
        return ReportReply(generation=settings.generation(tx), tasks=given, refused=tuple(refused))
