"""The records. Times are seconds since the epoch; JSON columns hold what the models in ``farshore.model`` dump."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Root of all records."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        Json: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[Json]: JSON(none_as_null=True),
        str: String(),
    }


class Setting(Base):
    """One fact about this control plane: ``catalog_id``, ``generation``."""

    __tablename__ = "setting"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Json]


class Site(Base):
    """A place with machines, and what its node last found there."""

    __tablename__ = "site"
    name: Mapped[str] = mapped_column(primary_key=True)
    platform: Mapped[str]
    description: Mapped[str] = mapped_column(Text, default="")
    data_listen: Mapped[str] = mapped_column(default="source")
    created_at: Mapped[float]
    inventory: Mapped[Json | None]
    inventory_at: Mapped[float | None]


class SiteLink(Base):
    """How data goes from one site to another: see ``farshore.model.link.SiteLink``."""

    __tablename__ = "site_link"
    source_site: Mapped[str] = mapped_column(ForeignKey("site.name", ondelete="CASCADE"), primary_key=True)
    target_site: Mapped[str] = mapped_column(ForeignKey("site.name", ondelete="CASCADE"), primary_key=True)
    data_listen: Mapped[str]
    bandwidth: Mapped[Json]
    created_at: Mapped[float]


class SiteBundle(Base):
    """What a site keeps for a control plane that follows this one: see ``farshore.control.bundle``.

    ``digest`` is that of what the newest bundle there says, ``number`` its number. ``wanted`` is the digest of what
    ``task_id`` writes, until it has ended.
    """

    __tablename__ = "site_bundle"
    site: Mapped[str] = mapped_column(ForeignKey("site.name", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(default="")
    number: Mapped[int] = mapped_column(default=0)
    written_at: Mapped[float | None]
    wanted: Mapped[str] = mapped_column(default="")
    task_id: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    error: Mapped[Json | None]


class Node(Base):
    """A worker of one site.

    ``standing`` names the rates and links that it was told last, ``kit`` is what it has for guests and hooks.
    ``thumbprint`` is that of the certificate in use;
    ``next_thumbprint`` of a renewed one that was not used yet, for the answer that carried it may have been lost.
    """

    __tablename__ = "node"
    name: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"), index=True)
    roles: Mapped[list[str]]
    data_address: Mapped[str]
    created_at: Mapped[float]
    thumbprint: Mapped[str | None]
    serial: Mapped[str | None]
    not_after: Mapped[float | None]
    next_thumbprint: Mapped[str | None]
    next_serial: Mapped[str | None]
    next_not_after: Mapped[float | None]
    last_seen: Mapped[float | None]
    incarnation: Mapped[str | None]
    version: Mapped[str | None]
    platform: Mapped[str | None]
    data_port: Mapped[int | None]
    generation: Mapped[int] = mapped_column(default=0)
    standing: Mapped[str] = mapped_column(default="")
    kit: Mapped[Json | None]


class Share(Base):
    """What a node may take of a limited rate: see ``farshore.control.scheduling.shares``."""

    __tablename__ = "share"
    resource: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(ForeignKey("node.name", ondelete="CASCADE"), primary_key=True)
    rate: Mapped[float]
    later: Mapped[float]
    held: Mapped[float]
    kept: Mapped[float]
    until: Mapped[float]


class DeniedCertificate(Base):
    """A certificate that is refused though its signature and time are good."""

    __tablename__ = "denied_certificate"
    thumbprint: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str]
    reason: Mapped[str]
    at: Mapped[float]


class EnrolToken(Base):
    """Admits one node once."""

    __tablename__ = "enrol_token"
    token_id: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(ForeignKey("node.name", ondelete="CASCADE"), index=True)
    digest: Mapped[str]
    expires_at: Mapped[float]
    used_at: Mapped[float | None]


class Machine(Base):
    """A machine of a site's inventory. Ids are unique at their site only."""

    __tablename__ = "machine"
    site: Mapped[str] = mapped_column(ForeignKey("site.name", ondelete="CASCADE"), primary_key=True)
    machine_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    facts: Mapped[Json]
    seen_at: Mapped[float]
    gone_at: Mapped[float | None]


class Plan(Base):
    """A protection plan as it is now; ``epoch`` grows with each change of the active site.

    ``active_site`` is where all machines run, or where those run that were not moved yet. ``committed``: no change of
    sites is to be rolled back any more. ``approval`` is the policy that counts: one that the definition makes weaker
    counts until others have approved that.
    """

    __tablename__ = "plan"
    name: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[int]
    source: Mapped[str] = mapped_column(Text)
    definition: Mapped[Json]
    activity: Mapped[str] = mapped_column(default="inactive")
    active_site: Mapped[str]
    state: Mapped[str] = mapped_column(default="unprotected")
    epoch: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float]
    changed_at: Mapped[float]
    last_error: Mapped[Json | None]
    committed: Mapped[bool] = mapped_column(default=True)
    approval: Mapped[Json | None]


class PlanRevision(Base):
    """What a plan said at one time."""

    __tablename__ = "plan_revision"
    plan: Mapped[str] = mapped_column(ForeignKey("plan.name", ondelete="CASCADE"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    definition: Mapped[Json]
    created_at: Mapped[float]
    actor: Mapped[str]


class PlanMachine(Base):
    """A machine's part in a plan. ``machine_id`` is None until an inventory has shown the machine.

    ``source_state``, ``target_state`` and ``raised`` are those of ``farshore.recovery.states``; ``recovered_from`` is
    the checkpoint that the machine at the target grew from; ``committed``: it is not to be rolled back any more.
    ``site`` and ``machine_id`` are where the machine is replicated from; they change with the direction.
    ``old_machine_id`` is the old primary that then rests at the other site, ``home`` a dump of the facts of the machine
    that ran at the plan's source site first.
    """

    __tablename__ = "plan_machine"
    __table_args__ = (UniqueConstraint("site", "name"), UniqueConstraint("site", "machine_id"))
    plan: Mapped[str] = mapped_column(ForeignKey("plan.name", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    site: Mapped[str]
    machine_id: Mapped[str | None]
    group_id: Mapped[str] = mapped_column(index=True)
    activity: Mapped[str] = mapped_column(default="inactive")
    state: Mapped[str] = mapped_column(default="unprotected")
    target_machine_id: Mapped[str | None]
    source_state: Mapped[str] = mapped_column(default="running")
    target_state: Mapped[str] = mapped_column(default="absent")
    raised: Mapped[bool] = mapped_column(default=False)
    recovered_from: Mapped[str | None]
    committed: Mapped[bool] = mapped_column(default=True)
    old_machine_id: Mapped[str | None]
    home: Mapped[Json | None]


class OldPrimary(Base):
    """A machine that was the primary until ``epoch`` began; it rests, fenced, with its disks as they were.

    ``divergent``: the epoch was forced, so that it may hold what nobody else has. ``committed_at``: since then nobody
    can roll back to it.
    """

    __tablename__ = "old_primary"
    plan: Mapped[str] = mapped_column(ForeignKey("plan.name", ondelete="CASCADE"), primary_key=True)
    machine: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str]
    machine_id: Mapped[str]
    divergent: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float]
    committed_at: Mapped[float | None]


class Group(Base):
    """A consistency group: what is published together.

    ``tainted_by``: the checkpoint whose signs of encryption count for all that follow, None if there is none.
    ``crowded``: its chain of points has reached the plan's ``max_chain``, and no rule may make it shorter.
    """

    __tablename__ = "consistency_group"
    group_id: Mapped[str] = mapped_column(primary_key=True)
    plan: Mapped[str] = mapped_column(ForeignKey("plan.name", ondelete="CASCADE"), index=True)
    failures: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    last_started_at: Mapped[float | None]
    last_seconds: Mapped[float | None]
    last_error: Mapped[Json | None]
    tainted_by: Mapped[str | None]
    crowded: Mapped[bool] = mapped_column(default=False)


class Checkpoint(Base):
    """A projection of a published manifest, with what the catalogue adds: pins, labels, leases.

    ``ordered_boot_s`` and ``ordered_boot_id`` are the second clock's reading when the source point was ordered.
    ``drops`` counts how often it was decided to drop it. ``integrity`` is what ``addenda`` say together. ``hold`` is
    the reason of a legal hold, empty where there is none. ``score`` is a dump of ``farshore.checkpoints.score.Score``;
    ``cleared`` says who found its marks to be harmless.
    """

    __tablename__ = "checkpoint"
    __table_args__ = (
        UniqueConstraint("group_id", "epoch", "sequence"),
        Index("ix_checkpoint_plan_label", "plan", "label"),
    )
    checkpoint_id: Mapped[str] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(index=True)
    plan: Mapped[str] = mapped_column(index=True)
    plan_revision: Mapped[int]
    epoch: Mapped[int]
    sequence: Mapped[int]
    level: Mapped[str]
    ordered_at: Mapped[float]
    ordered_boot_s: Mapped[float]
    ordered_boot_id: Mapped[str]
    taken_at: Mapped[float]
    published_at: Mapped[float]
    source_site: Mapped[str]
    target_site: Mapped[str]
    manifest: Mapped[Json]
    cycle_id: Mapped[str]
    stats: Mapped[Json | None]
    state: Mapped[str] = mapped_column(default="published")
    drops: Mapped[int] = mapped_column(default=0)
    integrity: Mapped[str] = mapped_column(default="audited")
    addenda: Mapped[list[Json]] = mapped_column(default=list)
    pinned: Mapped[bool] = mapped_column(default=False)
    label: Mapped[str] = mapped_column(default="")
    note: Mapped[str] = mapped_column(Text, default="")
    hold: Mapped[str] = mapped_column(Text, default="")
    held_by: Mapped[str] = mapped_column(default="")
    held_at: Mapped[float | None]
    score: Mapped[Json | None]
    cleared: Mapped[Json | None]


class Lease(Base):
    """A run that uses a checkpoint, which therefore stays."""

    __tablename__ = "lease"
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.checkpoint_id"), primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True, index=True)


class Cycle(Base):
    """One replication cycle of a group: point, replicate, release.

    ``state``: waiting, point, replicate, release, then done, failed or cancelled. ``error`` is set as soon as the
    outcome is known, also while the release is still going on. ``abandon``: nothing more is asked of the source site.
    ``consistency``: a level that was asked for beyond the plan's; the cycle fails rather than stay below it.
    """

    __tablename__ = "cycle"
    cycle_id: Mapped[str] = mapped_column(primary_key=True)
    plan: Mapped[str] = mapped_column(ForeignKey("plan.name", ondelete="CASCADE"), index=True)
    group_id: Mapped[str] = mapped_column(index=True)
    plan_revision: Mapped[int]
    epoch: Mapped[int]
    purpose: Mapped[str]
    run_id: Mapped[str | None] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    cancel: Mapped[bool] = mapped_column(default=False)
    abandon: Mapped[bool] = mapped_column(default=False)
    restarts: Mapped[int] = mapped_column(default=0)
    sequence: Mapped[int | None]
    point_id: Mapped[str | None]
    checkpoint_id: Mapped[str | None]
    base_checkpoint_id: Mapped[str | None]
    machines: Mapped[list[str] | None]
    source_node: Mapped[str | None]
    ordered_at: Mapped[float | None]
    ordered_boot_s: Mapped[float | None]
    ordered_boot_id: Mapped[str | None]
    point: Mapped[Json | None]
    task_id: Mapped[str | None]
    stats: Mapped[Json | None]
    error: Mapped[Json | None]
    label: Mapped[str] = mapped_column(default="")
    pin: Mapped[bool] = mapped_column(default=False)
    hold: Mapped[str] = mapped_column(Text, default="")
    held_by: Mapped[str] = mapped_column(default="")
    consistency: Mapped[str | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]


class Task(Base):
    """Work for a node. ``key`` makes its insertion idempotent; ``term`` grows when another incarnation takes it over.

    ``state``: queued, assigned, then succeeded, failed or cancelled. ``session`` is what a replication was given to its
    node with; ``drafts`` maps its disks to what of their drafts is durable.
    """

    __tablename__ = "task"
    __table_args__ = (
        Index("ix_task_site_state_role", "site", "state", "role", "run_id", "created_at"),
        Index("ix_task_state_kind", "state", "kind"),
    )
    task_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    site: Mapped[str]
    role: Mapped[str | None]
    pinned_node: Mapped[str | None]
    plan: Mapped[str | None] = mapped_column(index=True)
    run_id: Mapped[str | None] = mapped_column(index=True)
    cycle_id: Mapped[str | None] = mapped_column(index=True)
    step: Mapped[str | None]
    machine: Mapped[str | None]
    state: Mapped[str] = mapped_column(default="queued")
    cancel: Mapped[bool] = mapped_column(default=False)
    term: Mapped[int] = mapped_column(default=1)
    node: Mapped[str | None]
    incarnation: Mapped[str | None]
    params: Mapped[Json]
    result: Mapped[Json | None]
    error: Mapped[Json | None]
    stats: Mapped[Json | None]
    progress: Mapped[Json | None]
    session: Mapped[Json | None]
    drafts: Mapped[Json | None]
    not_before: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[float]
    assigned_at: Mapped[float | None]
    ended_at: Mapped[float | None]


class Fence(Base):
    """An old primary that has to be fenced before anything else is done at its site."""

    __tablename__ = "fence"
    site: Mapped[str] = mapped_column(primary_key=True)
    machine_id: Mapped[str] = mapped_column(primary_key=True)
    plan: Mapped[str] = mapped_column(index=True)
    machine: Mapped[str]
    epoch: Mapped[int]
    created_at: Mapped[float]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    task_id: Mapped[str | None]
    done_at: Mapped[float | None]
    error: Mapped[Json | None]


class Run(Base):
    """Something that a person asked for and that takes a while.

    ``workflow``: the orchestrator tells its story. ``pokes`` counts what happened to it; ``wake_at`` is when it has to
    look again by itself. ``phase`` is where its story is.
    ``approval``: how many people have to agree and who did, None where nobody has to. ``retry_of``: the run that this
    one goes on with.
    """

    __tablename__ = "run"
    #: The way that the plan ran, or was to run, when this began.
    from_site: Mapped[str] = mapped_column(default="")
    to_site: Mapped[str] = mapped_column(default="")
    run_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(index=True)
    plan: Mapped[str] = mapped_column(index=True)
    plan_revision: Mapped[int]
    state: Mapped[str] = mapped_column(default="pending", index=True)
    actor: Mapped[str]
    params: Mapped[Json]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    cancel: Mapped[bool] = mapped_column(default=False)
    workflow: Mapped[bool] = mapped_column(default=False)
    pokes: Mapped[int] = mapped_column(default=0)
    pause: Mapped[bool] = mapped_column(default=False)
    phase: Mapped[str] = mapped_column(default="")
    wake_at: Mapped[float | None]
    approval: Mapped[Json | None]
    retry_of: Mapped[str | None]
    error: Mapped[Json | None]
    facts: Mapped[Json]


class RunStep(Base):
    """One step of a run, of one machine where ``machine`` is not empty. ``evidence``: what it saw, as JSON."""

    __tablename__ = "run_step"
    __table_args__ = (
        Index("ix_run_step_run_id_position", "run_id", "position"),
        Index("ix_run_step_run_id_ended_at", "run_id", "ended_at"),
    )
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    machine: Mapped[str] = mapped_column(primary_key=True, default="")
    position: Mapped[int]
    attempt: Mapped[int] = mapped_column(default=0)
    state: Mapped[str]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    detail: Mapped[str] = mapped_column(Text, default="")
    task_id: Mapped[str | None]
    error: Mapped[Json | None]
    evidence: Mapped[Json | None]


class HookBundle(Base):
    """The files of plans' hooks: see ``farshore.model.hooks``. ``digest`` is the SHA-256 of ``content``, a tar file."""

    __tablename__ = "hook_bundle"
    digest: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    files: Mapped[list[str]]
    created_at: Mapped[float]
    actor: Mapped[str]


class RunMachine(Base):
    """What a run did with one machine."""

    __tablename__ = "run_machine"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    state: Mapped[str] = mapped_column(default="pending")
    machine_id: Mapped[str | None]
    target_name: Mapped[str | None]
    target_machine_id: Mapped[str | None]
    checkpoint_id: Mapped[str | None]
    address: Mapped[str | None]
    rpo_s: Mapped[float | None]
    rto_s: Mapped[float | None]
    stop_ordered_at: Mapped[float | None]
    settled_at: Mapped[float | None]
    probes: Mapped[list[Json]]


class RunSight(Base):
    """What a machine showed in a run: the end of its console text, and its screen as a PNG if it has one."""

    __tablename__ = "run_sight"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id", ondelete="CASCADE"), primary_key=True)
    machine: Mapped[str] = mapped_column(primary_key=True)
    taken_at: Mapped[float]
    console: Mapped[str] = mapped_column(Text)
    screen: Mapped[bytes | None] = mapped_column(LargeBinary)
    note: Mapped[str] = mapped_column(Text, default="")


class DueDrill(Base):
    """A drill that a plan's schedule asks for at one time.

    ``state``: waiting, then begun (as ``run_id``) or missed; ``reason`` says why it waits, or was missed. ``tried_at``:
    when it was last tried to begin it.
    """

    __tablename__ = "due_drill"
    plan: Mapped[str] = mapped_column(ForeignKey("plan.name", ondelete="CASCADE"), primary_key=True)
    due_at: Mapped[float] = mapped_column(primary_key=True)
    schedule: Mapped[str]
    state: Mapped[str] = mapped_column(default="waiting")
    run_id: Mapped[str | None]
    tried_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(Text, default="")


class Report(Base):
    """The evidence of a finished run; ``digest`` chains it to the one before.

    ``html`` and ``junit`` are the texts whose digests it holds, as they were made then.
    """

    __tablename__ = "report"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"), primary_key=True)
    position: Mapped[int] = mapped_column(unique=True)
    document: Mapped[Json]
    digest: Mapped[str]
    html: Mapped[str | None] = mapped_column(Text)
    junit: Mapped[str | None] = mapped_column(Text)


class Token(Base):
    """A bearer token of a person or program."""

    __tablename__ = "token"
    token_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    digest: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]


class Audit(Base):
    """One entry of the audit trail; ``digest`` covers the entry and the digest before it."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[Json]
    previous: Mapped[str]
    digest: Mapped[str]


class Idempotency(Base):
    """The answer that was given to a request that carried a key. Never holds a secret."""

    __tablename__ = "idempotency"
    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int]
    headers: Mapped[Json]
    body: Mapped[Json | None]
    at: Mapped[float] = mapped_column(index=True)
