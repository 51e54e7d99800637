"""The files of plans' hooks: taken with the plan, kept by their digest, given to the nodes that need them."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control.store.database import Transaction
from farshore.control.store.records import HookBundle, Plan, PlanRevision, Run, Task
from farshore.errors import Invalid, NotFound
from farshore.model.plan import Plan as Definition
from farshore.recovery import bundle

#: Where a plan names a file that is not there, and which.
Missing = tuple[tuple[str | int, ...], str]


def read(files: Mapping[str, str]) -> bytes:
    """Return the bundle of ``files``: content as base64 by path.

    Raises:
        Invalid: one is no base64, or the bundle is not allowed.
    """
    decoded = {}
    for path, content in files.items():
        try:
            decoded[path] = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Invalid(f"{path!r} is no base64 text", code="hook-files-invalid", field="files") from error
    return bundle.pack(decoded)


def needed(definition: Definition) -> list[str]:
    """Return the files of tasks that the plan names."""
    return sorted({file for _, file in bundle.referred(definition)})


def settle(session: Session, definition: Definition, content: bytes | None) -> tuple[Definition, list[Missing]]:
    """Return the plan with the bundle that it has from now on, and what of the files that it names is missing.

    Without ``content`` it keeps the one that it has, if all files are in there.
    """
    wanted = list(bundle.referred(definition))
    if not wanted:
        return definition.model_copy(update={"bundle": None}), []
    if content is not None:
        digest: str | None = bundle.digest_of(content)
        present = set(bundle.unpack(content, str(digest)))
    else:
        record = session.get(Plan, definition.name)
        digest = record.definition.get("bundle") if record is not None else None
        row = session.get(HookBundle, digest) if digest else None
        present = set(row.files) if row is not None else set()
    missing = [(path, file) for path, file in wanted if file not in present]
    return definition.model_copy(update={"bundle": digest if not missing else None}), missing


def keep(tx: Transaction, content: bytes, actor: str) -> None:
    """Keep a bundle; again: nothing. Those that nothing refers to any more go."""
    digest = bundle.digest_of(content)
    if tx.get(HookBundle, digest) is None:
        _tidy(tx)
        files = sorted(bundle.unpack(content, digest))
        tx.add(HookBundle(digest=digest, content=content, files=files, created_at=time.time(), actor=actor))
        tx.flush()


def _tidy(tx: Transaction) -> None:
    """Remove the bundles that no revision of a plan and no open run refers to."""
    used = {definition.get("bundle") for definition in tx.scalars(select(PlanRevision.definition))}
    used |= {definition.get("bundle") for definition in tx.scalars(select(Plan.definition))}
    for run in tx.scalars(select(Run).where(Run.ended_at.is_(None))):
        used.add((run.facts.get("definition") or {}).get("bundle"))
    for digest in tx.scalars(select(HookBundle.digest)).all():
        if digest not in used:
            tx.delete(tx.get_one(HookBundle, digest))


def for_node(session: Session, digest: str, node: str) -> bytes:
    """Return a bundle that a task of the node refers to.

    Raises:
        NotFound: no task of this node does; others' files are none of its business.
    """
    held = session.scalars(
        select(Task.params).where(Task.node == node, Task.state == "assigned", Task.kind.in_(("hook", "machine-probe")))
    )
    row = session.get(HookBundle, digest) if any(params.get("bundle") == digest for params in held) else None
    if row is None:
        raise NotFound(f"no task of node {node!r} needs a bundle {digest!r}", code="hook-bundle-unknown")
    return row.content
