"""Who calls: a person or program with a token, or a node with a certificate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from sqlalchemy import select

from farshore.control import clock
from farshore.control.auth import ca, tokens
from farshore.control.context import Context
from farshore.control.store.database import Transaction
from farshore.control.store.records import DeniedCertificate, Node, Token
from farshore.errors import Forbidden, Unauthenticated

COOKIE: Final = "farshore_session"
UI_HEADER: Final = "X-Farshore-UI"
#: How fresh ``last_used_at`` of a token is kept.
_USED_EVERY_S: Final = 60.0
#: Clocks of nodes may differ from ours by this much.
_LEEWAY_S: Final = 120.0
#: Key of the ASGI scope under which the node listener puts the peer's certificate (DER), None without one.
PEER: Final = "farshore.peer"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller with a token."""

    token_id: str
    name: str
    role: str

    def may(self, least: str) -> bool:
        """Say whether the caller's role is ``least`` or more."""
        return tokens.covers(self.role, least)


def check_token(ctx: Context, text: str) -> Identity:
    """Return whose token ``text`` is.

    Raises:
        Unauthenticated: no such token, or revoked, or expired.
    """
    parts = tokens.split(tokens.API, text)
    with ctx.store.read() as session:
        record = session.get(Token, parts[0]) if parts else None
    if parts is None or record is None or not tokens.matches(parts[1], record.digest):
        raise Unauthenticated(
            "the token is not valid", code="token-invalid", hint="Look at FARSHORE_TOKEN, or in farshore.env."
        )
    if record.revoked_at is not None:
        raise Unauthenticated("the token was revoked", code="token-revoked", hint="Ask an admin for a new one.")
    now = time.time()
    if record.expires_at is not None and record.expires_at <= now:
        raise Unauthenticated(
            f"the token expired at {clock.iso(record.expires_at)}",
            code="token-expired",
            hint="Ask an admin for a new one.",
        )
    if record.last_used_at is None or now - record.last_used_at > _USED_EVERY_S:
        with ctx.store.write() as tx:
            tx.get_one(Token, record.token_id).last_used_at = now
    return Identity(record.token_id, record.name, record.role)


def identify(request: Request) -> Identity:
    """Return who sent ``request``, by bearer token or by the session cookie of the web page.

    Raises:
        Unauthenticated: no valid token.
        Forbidden: a change by cookie without the header that only our own pages can send.
    """
    ctx: Context = request.app.state.farshore
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise Unauthenticated("send the token as `Authorization: Bearer ...`", code="token-invalid")
        return check_token(ctx, text.strip())
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        raise Unauthenticated(
            "no token was sent",
            code="token-missing",
            hint="Set FARSHORE_TOKEN; `farshore up` wrote it to farshore.env.",
        )
    if request.method not in {"GET", "HEAD"} and request.headers.get(UI_HEADER) != "1":
        raise Forbidden(f"a change by cookie needs the header {UI_HEADER}: 1", code="csrf")
    return check_token(ctx, cookie)


def peer_of(request: Request) -> ca.PeerIdentity:
    """Return whose certificate the connection carries. Whether it still counts is what :func:`admit` says.

    Raises:
        Unauthenticated: no certificate, or out of its time.
    """
    der: bytes | None = request.scope.get(PEER)
    if der is None:
        raise Unauthenticated(
            "this needs the node's certificate",
            code="certificate-required",
            hint="Enrol the node: `farshore node enrol --config FILE --token-file FILE`.",
        )
    peer = ca.read_peer(der)
    now = time.time()
    if not peer.not_before - _LEEWAY_S <= now <= peer.not_after + _LEEWAY_S:
        raise Unauthenticated(
            f"the certificate of node {peer.node!r} is out of its time of validity",
            code="certificate-expired",
            hint="Compare the clocks, then enrol the node again with a new token.",
            not_before=clock.iso(peer.not_before),
            not_after=clock.iso(peer.not_after),
        )
    return peer


def admit(tx: Transaction, peer: ca.PeerIdentity) -> Node:
    """Return the node that a certificate belongs to, as it is recorded, for what is done in the same transaction.

    Raises:
        Unauthenticated: the certificate was revoked or replaced, or its node was removed.
        Forbidden: the node belongs to another site now.
    """
    query = select(Node, DeniedCertificate.reason).outerjoin(
        DeniedCertificate, DeniedCertificate.thumbprint == peer.thumbprint
    )
    node, denied = tx.execute(query.where(Node.name == peer.node)).tuples().first() or (None, None)
    if denied is not None or node is None or node.thumbprint is None:
        raise Unauthenticated(
            f"the certificate of node {peer.node!r} is refused: {denied or 'the node was removed'}",
            code="certificate-revoked",
            hint="Make a token with `farshore node token NAME` and enrol the node again.",
        )
    if node.site != peer.site:
        raise mismatch(peer.site, peer.node, node.site, node.name)
    if peer.thumbprint == node.next_thumbprint:
        _promote(tx, node, peer.thumbprint)
    if node.thumbprint != peer.thumbprint:
        raise Unauthenticated(
            f"the certificate of node {peer.node!r} was replaced by a newer one", code="certificate-revoked"
        )
    return node


def _promote(tx: Transaction, node: Node, thumbprint: str) -> None:
    """Make a renewed certificate, now seen in use, the node's only one."""
    if node.thumbprint is not None:
        old = DeniedCertificate(thumbprint=node.thumbprint, node=node.name, reason="it was renewed", at=time.time())
        tx.add(old)
    node.thumbprint, node.serial, node.not_after = thumbprint, node.next_serial, node.next_not_after
    node.next_thumbprint = node.next_serial = node.next_not_after = None
    tx.changed("node", node.name)


def mismatch(site: str, node: str, claimed_site: str, claimed_node: str) -> Forbidden:
    """Return the error of a certificate that belongs to somebody else than who calls."""
    return Forbidden(
        f"the certificate is that of node {node!r} of site {site!r}, but the call is made as node {claimed_node!r}"
        f" of site {claimed_site!r}",
        code="certificate-mismatch",
        hint="Use the certificate that this node got when it was enrolled.",
        certificate={"site": site, "node": node},
        claimed={"site": claimed_site, "node": claimed_node},
    )
