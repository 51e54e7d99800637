"""A control plane that follows a lost one: an empty home filled from a site's bundle, with a higher generation.

Order of writing: a mark that says *unfinished*, keys, records, and the mark's removal, which is the commit point. A
crash before it leaves a home in which nothing starts and which the same command fills again from the beginning.

What follows from the higher generation happens by itself: nodes take it over at their first poll and refuse every
control plane with a lower one from then on, also after a restart of theirs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.control import audit, bundle, past, sealing
from farshore.control.clock import iso
from farshore.control.home import UNFINISHED
from farshore.control.sealing import Header, RecoveryKey
from farshore.control.store import Store
from farshore.control.store.records import Fence, Plan, Setting, Site
from farshore.errors import Conflict, FarshoreError, Invalid, NotFound
from farshore.model.checkpoint import Manifest

#: Left by a start that did not come far; no reason to call a home taken.
_NOTHING: Final = frozenset({"control.log", UNFINISHED})
_OURS: Final = ("secrets", "reports", "farshore.db", "farshore.db-wal", "farshore.db-shm")


@dataclass(frozen=True, slots=True)
class Taken:
    """A bundle that was opened. ``passed_over`` says which newer ones could not be, and why."""

    name: str
    header: Header
    content: dict[str, Any]
    passed_over: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What a takeover has made."""

    catalog_id: str
    generation: int
    bundle: str
    written_at: str | None
    plans: list[str]
    sites: list[str]
    warnings: list[str] = field(default_factory=list)


def choose(found: Sequence[tuple[str, str]], key: RecoveryKey) -> Taken:
    """Return the newest of the bundles ``found`` (name, text) that the key opens.

    Raises:
        NotFound: there is none at all.
        Invalid, Corruption: none can be opened; the error is that of the newest one of the key's installation.
    """
    if not found:
        raise NotFound(
            "there is no site bundle",
            code="bundle-missing",
            field="--recover-from",
            hint="Name the site's pool, its manifests, or the file that `farshore node bundle` wrote.",
        )
    failures: list[tuple[tuple[int, int, int], str, FarshoreError]] = []
    opened: list[Taken] = []
    for name, text in found:
        rank = (-1, 0, 0)
        try:
            head = sealing.peek(text)
            rank = (int(head.catalog_id == key.catalog_id), *head.order)
            opened.append(Taken(name, *sealing.unseal(text, key)))
        except FarshoreError as error:
            failures.append((rank, name, error))
    if not opened:
        raise max(failures, key=lambda failure: failure[0])[2]
    newest = max(opened, key=lambda taken: taken.header.order)
    # One that cannot even be read may have been the newest: it is told of as well.
    passed_over = tuple(
        f"{name}: {error.message}"
        for rank, name, error in failures
        if rank[0] < 0 or (rank[0] == 1 and rank[1:] > newest.header.order)
    )
    return Taken(newest.name, newest.header, newest.content, passed_over)


def stale(content: dict[str, Any], manifests: Sequence[Manifest]) -> list[str]:
    """Return, as sentences, what the manifests of this catalogue at a site know that the bundle does not."""
    ours = [manifest for manifest in manifests if manifest.catalog_id == content["catalog_id"]]
    plans = {row["name"]: row for row in content["records"]["plan"]}
    found = []
    newest = max((manifest.generation for manifest in ours), default=0)
    if newest > content["generation"]:
        found.append(
            f"a control plane of generation {newest} has published here; the bundle is of generation"
            f" {content['generation']}"
        )
    for name in sorted({manifest.plan for manifest in ours}):
        of_plan = [manifest for manifest in ours if manifest.plan == name]
        epoch = max(manifest.epoch for manifest in of_plan)
        if name in plans and epoch > plans[name]["epoch"]:
            found.append(f"plan {name!r} is in epoch {epoch}, in the bundle in epoch {plans[name]['epoch']}")
    return found


def unknown_to(content: dict[str, Any], manifests: Sequence[Manifest]) -> list[str]:
    """Return, as sentences, what is newer or missing but keeps nobody from taking over."""
    ours = [manifest for manifest in manifests if manifest.catalog_id == content["catalog_id"]]
    plans = {row["name"]: row for row in content["records"]["plan"]}
    found = []
    for name in sorted({manifest.plan for manifest in ours}):
        revision = max(manifest.plan_revision for manifest in ours if manifest.plan == name)
        if name not in plans:
            found.append(f"plan {name!r} is not in the bundle; its checkpoints are kept, apply it again to use them")
        elif revision > plans[name]["revision"]:
            found.append(
                f"plan {name!r} was at revision {revision}; the bundle has {plans[name]['revision']}: apply it again"
            )
    return found


def take_over(path: Path, taken: Taken, manifests: Sequence[Manifest] = (), *, accept_stale: bool = False) -> Outcome:
    """Fill the empty home ``path`` from a bundle. ``manifests``: those of the site, where they can be read here.

    ``accept_stale``: also from a bundle that is older than what the manifests tell; plans whose direction has changed
    since come back inactive, in the newer epoch.

    Raises:
        Conflict: the home is not empty, or the bundle is stale.
        Invalid: a newer version of Farshore wrote the bundle.
    """
    content = taken.content
    _require_empty(path)
    old = stale(content, manifests)
    if old and not accept_stale:
        raise Conflict(
            f"bundle {taken.name} is older than what the site holds: {'; '.join(old)}",
            code="bundle-stale",
            field="--recover-from",
            hint="Take the bundle of another site. If there is none, go on with --accept-stale and look at each plan.",
            differences=old,
        )
    _require_schema(content)
    ours = [manifest for manifest in manifests if manifest.catalog_id == content["catalog_id"]]
    generation = max([content["generation"], *(manifest.generation for manifest in ours)]) + 1
    durable.make_dir(path)
    durable.write(path / UNFINISHED, f"{taken.name}\n".encode())
    _clear(path)
    secrets = path / "secrets"
    durable.make_dir(secrets)
    for name, text in content["keys"].items():
        if "/" in name or name.startswith("."):
            raise Invalid(f"the bundle names a key {name!r}", code="bundle-damaged", field="--recover-from")
        durable.write(secrets / name, text.encode(), 0o600 if name.endswith(".key") else 0o644)
    epochs = {
        plan: max(manifest.epoch for manifest in ours if manifest.plan == plan)
        for plan in {manifest.plan for manifest in ours}
    }
    _write_records(path / "farshore.db", taken, generation, epochs)
    durable.remove(path / UNFINISHED)
    warnings = [*(f"passed over: {one}" for one in taken.passed_over), *old, *unknown_to(content, manifests)]
    return Outcome(
        content["catalog_id"],
        generation,
        taken.name,
        iso(taken.header.written_at),
        [row["name"] for row in content["records"]["plan"]],
        [row["name"] for row in content["records"]["site"]],
        warnings,
    )


def _require_empty(path: Path) -> None:
    there = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if UNFINISHED not in there and there - _NOTHING:
        raise Conflict(
            f"the home {path} is not empty: it holds {', '.join(sorted(there)[:4])}",
            code="home-not-empty",
            field="--home",
            hint="Take over into an empty one with --home DIR. To start the control plane that is here already, leave"
            " --recover-from out.",
            path=str(path),
        )


def _require_schema(content: dict[str, Any]) -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from farshore.control.store.database import MIGRATIONS

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if content["schema"] not in known:
        raise Invalid(
            f"the bundle holds records of form {content['schema']}, which this version does not know",
            code="bundle-newer",
            field="--recover-from",
            hint="Install the version of Farshore that wrote it, or a later one.",
        )


def _clear(path: Path) -> None:
    """Remove what a takeover that was broken off has left."""
    for name in _OURS:
        left = path / name
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def _write_records(database: Path, taken: Taken, generation: int, epochs: dict[str, int]) -> None:
    content, now = taken.content, time.time()
    database.touch(0o600)
    store = Store(database)
    try:
        store.migrate()
        with store.write() as tx:
            tx.add(Setting(key="catalog_id", value={"value": content["catalog_id"]}))
            tx.add(Setting(key="generation", value={"value": generation}))
            bundle.heads(tx, content["evidence"], content["audit"])
            for table in bundle.TABLES:
                columns = {column.key for column in table.__table__.columns}
                for row in content["records"].get(table.__tablename__, ()):
                    tx.add(table(**{key: bundle.from_plain(value) for key, value in row.items() if key in columns}))
                tx.flush()
            past.restore(tx, content.get("past", ()))
            for fence in tx.query(Fence).filter_by(done_at=None):
                fence.created_at = now  # another order than the one that the lost control plane gave
            for plan in tx.query(Plan):
                plan.approval = plan.approval or plan.definition.get("approval")  # a bundle from before that counted
                if epochs.get(plan.name, 0) > plan.epoch:
                    plan.epoch, plan.activity, plan.state = epochs[plan.name], "inactive", "unprotected"
            sites = [str(site.name) for site in tx.query(Site)]
            tx.add(Setting(key="rebuild", value={"sites": sites, "generation": generation}))
            tx.add(Setting(key="carried", value=content["marks"]))
            audit.record(
                tx,
                "control plane",
                "take_over",
                content["catalog_id"],
                bundle=taken.header.name,
                written_at=taken.header.written_at,
                generation=generation,
            )
    finally:
        store.close()
