"""The site bundle: what a control plane that follows this one needs, kept sealed at every site and renewed on change.

It holds the records that people made (sites, nodes, plans with all revisions, epochs, tokens' digests, open fences),
pins and labels of checkpoints, the keys, the catalogue's id and generation, and where the chains of evidence and audit
stand, with the newest runs and their reports. Checkpoints themselves are not in it: they are read from the manifests.
Neither are tasks and inventories.

Commit point per site: the node's report that the object lies in the manifest store. A control plane that is killed
before it finds its digest unrecorded and writes the next number; objects are never changed, so the site always holds a
whole bundle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from typing import Any, Final, cast

from sqlalchemy import Boolean, Column, ColumnElement, Table, inspect, or_, select, text
from sqlalchemy.orm import Session

from farshore.control import past, sealing, tasks
from farshore.control.context import Context
from farshore.control.store import settings
from farshore.control.store.database import Transaction
from farshore.control.store.records import (
    Audit,
    Base,
    Checkpoint,
    DeniedCertificate,
    Fence,
    Group,
    HookBundle,
    Node,
    OldPrimary,
    Plan,
    PlanMachine,
    PlanRevision,
    Report,
    Run,
    Setting,
    Site,
    SiteBundle,
    SiteLink,
    Task,
    Token,
)
from farshore.control.views.history import OPEN
from farshore.control.views.places import site_state
from farshore.model.task import BundlePutParams, BundlePutResult

log = logging.getLogger(__name__)

#: How soon after a change a bundle is renewed; changes within it share one.
PAUSE_S: Final = 2.0
#: The records are looked at for no more than this share of a processor's time, but at least this often.
SHARE: Final = 0.01
LONGEST_LOOK_S: Final = 20.0
LONGEST_PAUSE_S: Final = 300.0
#: Bundles of a catalogue that a site keeps beside the newest.
KEPT: Final = 3

#: In the order in which they can be inserted.
TABLES: Final[tuple[type[Base], ...]] = (
    Site,
    SiteLink,
    Node,
    DeniedCertificate,
    Plan,
    PlanRevision,
    Group,
    PlanMachine,
    OldPrimary,
    Fence,
    HookBundle,
    Token,
)
#: What tells how things are going, not what was decided: left out, and found out anew.
_PASSING: Final[dict[str, frozenset[str]]] = {
    "site": frozenset({"inventory", "inventory_at"}),
    "node": frozenset(
        {"last_seen", "incarnation", "version", "platform", "data_port", "generation", "standing", "kit"}
    ),
    "plan": frozenset({"last_error"}),
    "consistency_group": frozenset({"failures", "not_before", "last_started_at", "last_seconds", "last_error"}),
    "fence": frozenset({"attempts", "not_before", "task_id", "error"}),
    "token": frozenset({"last_used_at"}),
}
#: Carried over, but no reason to write a new bundle: what is large changes together with what is named beside it, a
#: definition with its revision, a machine's home with its epoch.
_QUIET: Final = frozenset({"changed_at", "content", "definition", "home"})
#: What people said about checkpoints; no manifest knows it.
_SAID: Final = ("pinned", "label", "note", "hold", "held_by", "held_at", "cleared")
MARKS: Final[tuple[Column[Any], ...]] = tuple(
    column for column in cast("Table", Checkpoint.__table__).columns if column.key in _SAID
)
_KEYS: Final = ("ca.key", "ca.pem", "grant.key", "grant.pem", "evidence.key", "evidence.pem", "recovery.pub")


def records(session: Session, *, whole: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that a bundle holds, by table; not ``whole``: only what a renewal has to follow."""
    found = {}
    for table in TABLES:
        left_out = _PASSING.get(table.__tablename__, frozenset()) | (frozenset() if whole else _QUIET)
        columns = [column.key for column in table.__table__.columns if column.key not in left_out]
        rows = session.execute(
            select(*(table.__table__.c[key] for key in columns)).order_by(*inspect(table).primary_key)
        )
        found[table.__tablename__] = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
    return found


def _plain(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def from_plain(value: Any) -> Any:
    """Return a column's value as it was before it became JSON."""
    whole = isinstance(value, dict) and value.keys() == {"base64"}
    return base64.b64decode(value["base64"]) if whole else value


def marks(session: Session) -> dict[str, dict[str, Any]]:
    """Return what people said about checkpoints that are offered, by checkpoint."""
    query = select(Checkpoint.checkpoint_id, *MARKS).where(
        Checkpoint.state == "published", or_(*(_is_said(column) for column in MARKS))
    )
    names = [column.key for column in MARKS]
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in session.execute(query)}


def _is_said(column: Column[Any]) -> ColumnElement[bool]:
    if isinstance(column.type, Boolean):
        return column.is_(True)
    return column.is_not(None) if column.nullable else column != ""


def digest(session: Session) -> str:
    """Return the digest of what a bundle written now would say that the one before did not."""
    rows = records(session, whole=False)
    chain = session.scalars(select(Report.digest).order_by(Report.position.desc()).limit(1)).first()
    body = [settings.catalog_id(session), settings.generation(session), rows, marks(session), chain]
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content(session: Session, ctx: Context) -> dict[str, Any]:
    """Return what a bundle holds. It is full of secrets: for :func:`sealing.seal` only."""
    report = session.scalars(select(Report).order_by(Report.position.desc()).limit(1)).first()
    entry = session.scalars(select(Audit).order_by(Audit.seq.desc()).limit(1)).first()
    evidence = {"number": report.position, "digest": report.digest} if report else settings.head(session, "evidence")
    trail = {"number": entry.seq, "digest": entry.digest} if entry else settings.head(session, "audit")
    return {
        "catalog_id": settings.catalog_id(session),
        "generation": settings.generation(session),
        "schema": session.scalar(text("SELECT version_num FROM alembic_version")),
        "records": records(session),
        "marks": marks(session),
        "past": past.carried(session),
        "evidence": evidence,
        "audit": trail,
        "keys": {name: (ctx.home.secrets / name).read_text(encoding="ascii") for name in _KEYS},
        "reached_at": {"names": list(ctx.home.names), "url": ctx.home.url, "node_url": ctx.home.node_url},
    }


class Keeper:
    """Renews the bundles of all sites. All state is in rows; this only remembers when to look again."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._look_at = float("-inf")

    def tend(self) -> None:
        """Renew what is out of date, if it is time to look."""
        if time.monotonic() < self._look_at:
            return
        began = time.thread_time()
        with self._ctx.store.read() as session:
            wanted = digest(session)
            late = [site for site in session.scalars(select(Site.name)) if _is_late(session, site, wanted)]
        if late:
            with self._ctx.store.write() as tx:
                _renew(tx, self._ctx, late, wanted)
        # Its own processor time, for on a busy machine it waits more than it works.
        spent_s = time.thread_time() - began
        self._look_at = time.monotonic() + min(max(PAUSE_S, spent_s / SHARE), LONGEST_LOOK_S)


def _is_late(session: Session, site: str, wanted: str) -> bool:
    row = session.get(SiteBundle, site)
    return row is None or row.digest != wanted or row.task_id is not None


def _renew(tx: Transaction, ctx: Context, sites: list[str], wanted: str) -> None:
    """Have the bundles written that lack what ``wanted`` is the digest of; what has changed since may follow."""
    now = time.time()
    due = []
    for site in sites:
        if tx.get(Site, site) is None:
            continue  # deleted since it was looked at
        row = tx.get(SiteBundle, site)
        if row is None:
            row = SiteBundle(site=site)
            tx.add(row)
            tx.flush()
        due_now = _settle(tx, row, wanted) and row.digest != wanted and row.not_before <= now
        if due_now and site_state(tx, site) == "online" and not _is_left(tx, site):
            due.append(row)
    if not due:
        return
    number = settings.count(tx, "bundle")
    public = sealing.read_public((ctx.home.secrets / "recovery.pub").read_text(encoding="ascii"))
    header = sealing.Header(
        catalog_id=settings.catalog_id(tx),
        generation=settings.generation(tx),
        number=number,
        written_at=now,
        recovery_key=sealing.key_id(public),
    )
    params = BundlePutParams(
        key=header.name, data=sealing.seal(content(tx, ctx), header, public, ctx.evidence_key), keep=KEPT
    )
    for row in due:
        task = tasks.ensure(tx, f"bundle-put/{row.site}/{header.generation}/{number}", "bundle-put", row.site, params)
        row.task_id, row.wanted, row.number = task.task_id, wanted, number


def _is_left(session: Session, site: str) -> bool:
    """Say whether a failover leaves the site without a word to it, or what it has left there is not fenced yet."""
    fence = select(Fence.machine_id).where(Fence.site == site, Fence.done_at.is_(None)).limit(1)
    if session.scalars(fence).first() is not None:
        return True
    leaving = select(Run).where(Run.kind == "failover", Run.from_site == site, Run.state.in_(OPEN))
    return any(run.params.get("mode") == "unplanned" for run in session.scalars(leaving))


def _settle(tx: Transaction, row: SiteBundle, wanted: str) -> bool:
    """Take over how the last writing ended; False while one is under way that is still wanted."""
    task = tx.get(Task, row.task_id) if row.task_id else None
    if task is not None and task.state not in tasks.ENDED:
        if row.wanted == wanted or task.state != "queued":
            return False
        tasks.cancel(tx, task)  # nobody has begun it, and something newer is to be written
    if task is not None:
        task.params = {**task.params, "data": ""}  # it has done its service, and tasks are kept for long
    if task is not None and task.state == "succeeded":
        kept = BundlePutResult.model_validate(task.result or {}).keys
        row.digest, row.written_at, row.error, row.attempts, row.not_before = row.wanted, task.ended_at, None, 0, 0.0
        tx.changed("site", row.site)
        log.info("site %s holds bundle %d, and %d before it", row.site, row.number, max(0, len(kept) - 1))
    elif task is not None and task.state == "failed":
        error = tasks.failure(task)
        row.attempts += 1
        row.error, row.not_before = error.to_dict(), time.time() + min(2.0**row.attempts, LONGEST_PAUSE_S)
        log.warning("site %s did not take the bundle: %s", row.site, error)
        tx.changed("site", row.site)
    row.task_id = None
    return True


def heads(tx: Transaction, evidence: dict[str, Any] | None, trail: dict[str, Any] | None) -> None:
    """Let the chains of evidence and audit go on where another control plane's stood."""
    for name, head in (("evidence", evidence), ("audit", trail)):
        if head is not None:
            tx.merge(Setting(key=f"head-{name}", value={"number": int(head["number"]), "digest": str(head["digest"])}))
