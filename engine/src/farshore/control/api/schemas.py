"""What the interface answers. Times are ISO 8601 in UTC, durations seconds, sizes bytes."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from farshore.model.checkpoint import CycleStats, DiskPoint
from farshore.model.integrity import Damage, Integrity
from farshore.model.machine import DiskFacts, Finding, NetworkFacts, NicFacts, PoolFacts
from farshore.model.task import ProbeOutcome

Item = TypeVar("Item")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_Answer):
    """An error (RFC 9457). ``code`` is stable, ``field`` names the input that is wrong, ``hint`` the next step."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    field: str | None
    hint: str
    evidence: dict[str, Any]


class Items(_Answer, Generic[Item]):
    """A list."""

    items: list[Item]


class Preview(_Answer):
    """What a change would do. Nothing was changed."""

    changed: bool
    before: Any
    after: Any
    warnings: list[str]


class EvidenceKey(_Answer):
    """The public key of reports."""

    pem: str
    fingerprint: str


class Bill(_Answer):
    """Amounts by what they are for."""

    calls: float
    storage: float
    transfer: float
    total: float


class PriceList(_Answer):
    """Whose prices an estimate was made with."""

    region: str
    as_of: str
    source: str


class CostEstimate(_Answer):
    """An estimate: what the first copy costs once, and what a month costs when retention has all that it keeps.

    ``basis`` is ``measured`` where cycles of all groups have told how much changes, else ``assumed``;
    ``unknown_machines`` are not counted.
    """

    currency: str
    first_copy: Bill
    per_month: Bill
    basis: Literal["measured", "assumed"]
    changed_gib_per_day: float
    prices: list[PriceList]
    unknown_machines: list[str]


class PlanCosts(_Answer):
    """Estimates of a plan as it is and as it would be; null where no provider has prices."""

    before: CostEstimate | None
    after: CostEstimate | None


class PlanPreview(Preview):
    """``files``: those that the plan's hooks and probes name; what sends the plan sends the folders they are in.

    ``costs``: what its replication is likely to cost before and after the change, where a provider has prices.
    """

    files: list[str]
    costs: PlanCosts


class Health(_Answer):
    """The control plane answers."""

    status: Literal["ok"]
    version: str
    catalog_id: str
    generation: int


class Identity(_Answer):
    """Whose token this is."""

    token_id: str
    name: str
    role: str


class Site(_Answer):
    """A site with what its node found there."""

    name: str
    platform: str
    description: str
    data_listen: str
    state: Literal["online", "offline", "no-node"]
    nodes: list[str]
    networks: list[NetworkFacts]
    pool: PoolFacts | None
    accelerator: str
    findings: list[Finding]
    inventory_at: str | None
    machine_count: int


class Findings(_Answer):
    """What a site's self-check found."""

    findings: list[Finding]


class SiteBundle(_Answer):
    """What a site keeps for a control plane that follows this one. ``current``: it says all that there is to say."""

    site: str
    number: int
    written_at: str | None
    current: bool
    error: dict[str, Any] | None


class Catalog(_Answer):
    """The catalogue. ``rebuilding``: sites not read yet since a takeover; ``superseded_by``: a higher generation."""

    catalog_id: str
    generation: int
    rebuilding: list[str]
    superseded_by: int | None
    recovery_key_is_here: bool
    bundles: list[SiteBundle]


class Preflight(_Answer):
    """How ready a plan is for its recovery. ``score``: 100 is all there could be; ``ready``: no finding stops it."""

    plan: str
    at: str | None
    ready: bool
    score: int
    findings: list[Finding]


class CatalogFindings(_Answer):
    """Where catalogue, manifests and native points of a site disagree; ``agrees``: nowhere."""

    site: str
    agrees: bool
    manifests: int
    foreign: int
    drafts: int
    findings: list[Finding]


class SiteLinkShare(_Answer):
    """What one node may take of a link's rate now."""

    node: str
    bytes_per_s: float
    until: str | None


class SiteLink(_Answer):
    """A link between two sites. ``limit_now``: bytes per second, none is no limit; it changes at ``limit_until``."""

    source_site: str
    target_site: str
    data_listen: Literal["source", "target"]
    bandwidth: dict[str, Any]
    limit_now: int | None
    limit_until: str | None
    shares: list[SiteLinkShare]


class Node(_Answer):
    """A node. ``data_address`` is where other nodes reach its data listener."""

    name: str
    site: str
    roles: list[str]
    data_address: str
    state: Literal["new", "enrolled", "online", "offline"]
    last_seen: str | None
    version: str | None
    platform: str | None
    certificate_not_after: str | None
    certificate_thumbprint: str | None


class NodeToken(_Answer):
    """A token that admits one node once; shown here and nowhere else."""

    token: str
    expires_at: str
    ca_pem: str
    ca_sha256: str
    node_url: str


class Machine(_Answer):
    """A machine with its protection. ``bottleneck``: why its RPO is exceeded. ``on_points``: it needs checkpoints."""

    machine_id: str
    name: str
    site: str
    power: str
    cpus: int
    memory_bytes: int
    firmware: str
    disks: list[DiskFacts]
    nics: list[NicFacts]
    tags: dict[str, str]
    on_points: bool
    plan: str | None
    state: str
    conditions: list[str]
    epoch: int | None
    active_site: str | None
    rpo_s: float | None
    newest_checkpoint: str | None
    findings: list[Finding]
    bottleneck: str | None
    seen_at: str | None


class PlanMachine(_Answer):
    """A machine of a plan."""

    name: str
    machine_id: str | None
    state: str
    activity: str
    active_site: str
    rpo_s: float | None
    newest_checkpoint: str | None


class Cycle(_Answer):
    """A replication cycle of a group."""

    cycle_id: str
    group_id: str
    purpose: str
    state: str
    checkpoint_id: str | None
    ordered_at: str | None
    started_at: str | None
    ended_at: str | None
    stats: CycleStats | None
    error: dict[str, Any] | None


class Direction(_Answer):
    """Where a plan's machines are, and where they are replicated to."""

    source: str
    target: str


class OldPrimary(_Answer):
    """A machine that was the primary until an epoch began; ``divergent``: it may hold what nobody else has.

    ``committed_at``: since then no rollback leads back to it; null where one may.
    """

    machine: str
    site: str
    machine_id: str
    until_epoch: int
    divergent: bool
    committed_at: str | None


class Plan(_Answer):
    """A plan with its state. ``rpo_s`` is the worst of its machines now.

    ``turned``: it is replicated from where it is active, which after a failover it is not before a reprotect.
    ``committed``: its last failover is not rolled back any more.
    """

    name: str
    revision: int
    definition: dict[str, Any]
    source: str
    source_site: str
    target_site: str
    activity: Literal["inactive", "active", "paused"]
    active_site: str
    direction: Direction
    turned: bool
    committed: bool
    old_primaries: list[OldPrimary]
    state: str
    conditions: list[str]
    epoch: int
    rpo_s: float | None
    rpo_target_s: float
    machines: list[PlanMachine]
    groups: list[str]
    next_cycle_at: str | None
    drill: dict[str, Any]
    cycles: list[Cycle]
    last_error: dict[str, Any] | None
    created_at: str | None
    changed_at: str | None
    warnings: list[str] = []


class Addendum(_Answer):
    """What an audit or a scrub has found out about a checkpoint; ``origin`` is the checkpoint or run that found it."""

    verdict: Literal["verified", "suspect"]
    by: Literal["audit", "scrub"]
    origin: str
    at: str | None
    reason: str
    damages: list[Damage]
    more: int
    read_bytes: int


class LegalHold(_Answer):
    """Why a checkpoint is kept until an admin lifts it."""

    reason: str
    by: str
    at: str | None


class Kept(_Answer):
    """Whether retention leaves a checkpoint, and why."""

    stays: bool
    reasons: list[str]


class Cleared(_Answer):
    """Who said of a checkpoint that it is clean."""

    by: str
    at: str | None
    note: str


class Suspicion(_Answer):
    """How much a checkpoint looks encrypted: 0 (as always) to 100; None where there was nothing to compare with.

    ``tainted_by``: an earlier checkpoint that was flagged; what came after holds the same damage.
    """

    verdict: Literal["clean", "unscored", "flagged", "tainted", "cleared"]
    score: int | None
    reasons: list[str]
    tainted_by: str | None
    cleared: Cleared | None


class KeptCheckpoint(Kept):
    """What retention would do with a checkpoint."""

    checkpoint_id: str
    group_id: str
    taken_at: str | None


class RetentionPreview(_Answer):
    """What retention rules would do now. ``crowded``: groups whose chain no rule may make shorter."""

    changed: bool
    before: dict[str, Any]
    after: dict[str, Any]
    checkpoints: list[KeptCheckpoint]
    crowded: list[str]
    warnings: list[str]


class Checkpoint(_Answer):
    """A published checkpoint of a group. ``addenda``: what audits and scrubs have found out about it."""

    checkpoint_id: str
    group_id: str
    plan: str
    plan_revision: int
    level: str
    evidence: dict[str, Any]
    sequence: int
    epoch: int
    ordered_at: str | None
    taken_at: str | None
    published_at: str | None
    source_site: str
    target_site: str
    pinned: bool
    hold: LegalHold | None
    retention: Kept | None
    suspicion: Suspicion
    label: str
    note: str
    in_use_by: list[str]
    integrity: Integrity
    addenda: list[Addendum]
    state: Literal["published", "tombstoned"]
    machines: list[str]
    disks: list[DiskPoint]
    stats: CycleStats | None


class RunStep(_Answer):
    """A step of a run. ``evidence``: what it saw or did, such as the output of a hook."""

    name: str
    machine: str | None
    state: str
    attempts: int
    started_at: str | None
    ended_at: str | None
    seconds: float | None
    detail: str
    error: dict[str, Any] | None
    evidence: dict[str, Any] | None


class RunMachine(_Answer):
    """What a run did with one machine: data at risk and time to come up, as measured."""

    name: str
    state: str
    machine_id: str | None
    target_name: str | None
    rpo_s: float | None
    rto_s: float | None
    checkpoint_id: str | None
    probes: list[ProbeOutcome]
    address: str | None


class RunCycle(_Answer):
    """A cycle that a run ordered."""

    group_id: str
    checkpoint_id: str | None
    state: str
    stats: CycleStats | None
    error: dict[str, Any] | None


class RunProgress(_Answer):
    """How far a run is. ``wire_bytes_per_s``: what crosses the links now; null where nothing is copied."""

    done_bytes: int
    total_bytes: int
    wire_bytes_per_s: float | None = None
    note: str


class Approver(_Answer):
    """Somebody who agreed to a run."""

    actor: str
    at: str


class Approval(_Answer):
    """How many people have to agree to a run, and who did."""

    people: int
    by: list[Approver]


class Run(_Answer):
    """Something that was asked for and takes a while. ``next``: what somebody has to do for it to go on, if any."""

    run_id: str
    kind: str
    plan: str
    plan_revision: int
    state: Literal["pending", "waiting-approval", "running", "paused", "succeeded", "partial", "failed", "cancelled"]
    cancel_requested: bool
    pause_requested: bool
    approval: Approval | None
    retry_of: str | None
    retried_by: str | None
    next: str
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    actor: str
    params: dict[str, Any]
    url: str
    report_url: str | None
    error: dict[str, Any] | None
    steps: list[RunStep]
    machines: list[RunMachine]
    cycles: list[RunCycle]
    facts: dict[str, Any]
    progress: RunProgress


class Committed(_Answer):
    """``changed``: a failover waited for it."""

    changed: bool
    plan: Plan


class Ran(_Answer):
    """The run that was begun; None if nothing had to be done."""

    run: Run | None
    changed: bool


class Ensured(_Answer):
    """The checkpoint that is there, or the run that makes it."""

    checkpoint: Checkpoint | None
    checkpoints: list[Checkpoint]
    run: Run | None
    changed: bool


class Token(_Answer):
    """A token without its secret."""

    token_id: str
    name: str
    role: str
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class NewToken(Token):
    """A token; ``token`` is shown here and nowhere else."""

    token: str


class AuditEntry(_Answer):
    """An entry of the audit trail; ``digest`` covers it and the entry before."""

    seq: int
    at: str | None
    at_s: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    previous: str
    digest: str


class AuditTrail(Items[AuditEntry]):
    """The newest entries; ``chain_broken_at``: the first that does not follow from the one before."""

    chain_broken_at: int | None


#: Described for every route.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "The request cannot be done; `code`, `field` and `hint` say why and what next.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


def answers(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of answers whose body is ``model``."""
    words = {200: "As it is now", 201: "Made", 202: "Begun"}
    return {status: {"model": model, "description": words[status]} for status in statuses}
