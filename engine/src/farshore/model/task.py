"""What the control plane asks of a node, and what comes back.

A task is at-least-once: every kind is idempotent under its ``key``. Parameters and results are the models below,
one pair per kind; both sides validate with them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from farshore.model.base import Report
from farshore.model.checkpoint import CycleStats, Level, Manifest
from farshore.model.guest import DnsUpdateParams, DnsUpdateResult, MachinePrepareParams, MachinePrepareResult
from farshore.model.hooks import BundlePath, Digest, SecretName, Variable
from farshore.model.integrity import Addendum
from farshore.model.kit import Kit
from farshore.model.machine import Finding, Inventory, MachineFacts, Power
from farshore.model.plan import Consistency, Probe, Purpose, Quiesce, Transport

TaskKind = Literal[
    "inventory",
    "check",
    "point",
    "replicate",
    "release",
    "machine-stop",
    "machine-start",
    "machine-fence",
    "machine-unfence",
    "machine-untrack",
    "machine-detach",
    "machine-retire",
    "network-create",
    "machine-create",
    "machine-prepare",
    "hook",
    "machine-power-on",
    "machine-probe",
    "machine-look",
    "isolation",
    "sweep",
    "drop-checkpoint",
    "catalog-scan",
    "catalog-check",
    "bundle-put",
    "scrub",
    "dns-update",
]


class Task(Report):
    """One piece of work for a node of ``site``.

    ``task_id`` is unique; ``term`` grows each time the same task is given to another node or incarnation.
    """

    task_id: str
    kind: TaskKind
    key: str
    site: str
    term: int = 1
    params: dict[str, Any] = {}


class Empty(Report):
    """No parameters, or nothing to tell."""


class CheckResult(Report):
    """What a site's self-check found."""

    findings: tuple[Finding, ...] = ()


class PointParams(Report):
    """Take one source point over all disks of ``machine_ids``, named ``point_id``.

    ``bases`` maps a disk key to the source point that the target holds of it, None where it holds nothing.
    ``demanded``: fail rather than take a point of a lower level. ``quiesce``: what to run in machines around a freeze,
    by their ids.
    """

    group_id: str
    point_id: str
    machine_ids: tuple[str, ...]
    consistency: Consistency = "machine"
    demanded: bool = False
    quiesce: dict[str, Quiesce] = {}
    bases: dict[str, str | None] = {}
    epoch: int = 0


class PointDisk(Report):
    """``incremental`` says that changes since the base can be named; ``reason`` why not."""

    disk_key: str
    size_bytes: int
    incremental: bool = False
    reason: str = ""


class PointResult(Report):
    """A source point that exists and waits to be read."""

    point_id: str
    taken_at: float
    level: Level
    evidence: dict[str, Any] = {}
    machines: tuple[MachineFacts, ...]
    disks: tuple[PointDisk, ...]


class ReplicateDisk(Report):
    """One disk to pull. ``base_point`` and ``base_root`` are the target's point and tree to grow on.

    ``draft_key`` and ``durable`` (ascending ranges, start and stop) are what an earlier holder of the task had written
    for good when it last told: a successor that can take the draft over goes on from there. ``seed``: an image in the
    target's pool that a disk without a base begins with; ``old_disk``: ``machine_id/disk_id`` of a machine at the
    target that was the primary before, whose disk it begins with.
    """

    disk_key: str
    size_bytes: int
    incremental: bool
    base_point: str | None = None
    base_root: str | None = None
    reason: str = ""
    seed: str | None = None
    old_disk: str | None = None
    draft_key: str | None = None
    durable: tuple[tuple[int, int], ...] = ()


class ReplicateParams(Report):
    """Pull a source point into new native points and publish ``manifest`` once they are sealed.

    ``manifest`` comes without its disks' points and roots; the node completes it (its ``disks`` are empty).
    ``address`` is ``host:port`` of the source node's data listener, as the target node reaches it; empty where the
    source node dials. ``limits`` names the rates that hold for the cycle: see ``PollReply.limits``. ``read_back``: read
    again what was written and compare it.
    """

    grant: str
    address: str
    manifest: Manifest
    disks: tuple[ReplicateDisk, ...]
    transport: Transport = Transport()
    limits: tuple[str, ...] = ()
    read_back: bool = False


class ReplicateResult(Report):
    """A published checkpoint. ``addenda``: all that is known at the target of the group's checkpoints."""

    manifest: Manifest
    stats: CycleStats
    addenda: tuple[Addendum, ...] = ()


class ReleaseParams(Report):
    """The point has been read (``applied``: it is a base now, older ones may go) or given up."""

    group_id: str
    point_id: str
    machine_ids: tuple[str, ...]
    applied: bool


class MachineParams(Report):
    """An action on one machine of the source."""

    machine_id: str
    epoch: int = 0


class UntrackResult(Report):
    """What of ours was on a machine, and what still is: nothing but a fence, which only a failback lifts."""

    machine_id: str = ""
    removed: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()


class DetachResult(Report):
    """How far a machine is from needing no checkpoint: ``copying``, ``waiting`` (``detail`` says for what) or ``done``.

    Bytes are those of the disk that is being copied now.
    """

    machine_id: str
    state: Literal["copying", "waiting", "done"]
    disks_left: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""


class RetireResult(Report):
    """What was deleted of an old primary, and what of it was kept, with the reason."""

    machine_id: str
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class MachineFenceParams(MachineParams):
    """Keep a machine from starting; ``power_off``: also end it at once if it runs, for another is the primary."""

    power_off: bool = False


class MachineStopParams(MachineParams):
    """Stop cleanly; on time-out fail (``abort``) or power off."""

    timeout_s: float
    on_timeout: Literal["abort", "power_off"]


class MachineResult(Report):
    """Where the machine stands now, read back."""

    machine_id: str
    power: Power
    fenced: bool = False
    detail: str = ""


class NetworkCreateParams(Report):
    """Make an isolated network for a run. ``hosts`` maps a MAC to the address that DHCP hands out."""

    tag: str
    name: str
    subnet: str
    hosts: dict[str, str] = {}


class NicSpec(Report):
    """One interface of a machine to be made. ``address`` is handed out by the network's DHCP where it has one.

    ``source_mac``: the interface's in the machine's facts, where it is to get another one.
    """

    mac: str
    network: str
    address: str | None = None
    source_mac: str = ""


class DiskSpec(Report):
    """One disk of a machine to be made: a writable layer over a sealed point; the point is never written."""

    disk_id: str
    point: str
    size_bytes: int


class MachineCreateParams(Report):
    """Reconstruct disks, instantiate, attach networks; left powered off.

    ``tag`` marks everything that is made. ``purpose`` ``drill`` is thrown away later, else it becomes the machine.
    ``bios_id`` is the UUID that its firmware tells, a new one where it is empty. ``name`` is unique at the site;
    ``replaces`` is the id of an old primary, fenced and off, that gives the name up where it has it.
    ``instance_type`` is asked for at a cloud and means nothing elsewhere; empty: one that fits.
    """

    tag: str
    purpose: Purpose
    name: str
    facts: MachineFacts
    cpus: int
    memory_bytes: int
    instance_type: str = ""
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    bios_id: str = ""
    epoch: int
    replaces: str | None = None


class MachineCreateResult(Report):
    """The machine at the target site."""

    machine_id: str
    name: str


class ProbeParams(Report):
    """Try all ``probes`` of one machine until green or timed out. ``address`` where known, else looked up.

    ``bundle`` holds the files of those that are Ansible tasks, ``context`` is what these are told of the run.
    """

    machine_id: str
    address: str | None = None
    probes: tuple[Probe, ...]
    bundle: Digest | None = None
    context: dict[str, Any] = {}


class ProbeOutcome(Report):
    """One probe's verdict with what was seen."""

    type: str
    target: str
    green: bool
    seconds: float
    tries: int
    detail: str = ""
    #: Why it is not green: ``no-address``, ``dns-failed``, ``no-answer``, ``refused``, ``wrong-answer`` ...
    code: str = ""
    evidence: str = Field("", max_length=4096)


class ProbeResult(Report):
    """All of one machine's verdicts; ``console`` is the tail of its console text."""

    machine_id: str
    green: bool
    outcomes: tuple[ProbeOutcome, ...]
    console: str = ""


class LookParams(Report):
    """Show what people would see of one machine now."""

    machine_id: str


class LookResult(Report):
    """A machine's console text, and its screen in base64 (empty where there is none; ``note`` says why)."""

    machine_id: str
    taken_at: float
    console: str = ""
    screen: str = Field("", max_length=1 << 20)
    note: str = ""


class IsolationParams(Report):
    """Prove that the isolated networks of ``tag`` lead nowhere.

    ``canaries``: try it from inside and outside, while no machine is on yet. Counters are read in any case: what guests
    have tried since then shows in them.
    """

    tag: str
    networks: tuple[str, ...]
    canaries: bool = True


class Canary(Report):
    """One try of a connection. A ``control`` has to be reached, all others must not be."""

    network: str
    source: str
    target: str
    control: bool
    reached: bool
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it went as it has to."""
        return self.reached == self.control


class PacketCount(Report):
    """What the rules of one network counted. ``outside``: packets that got past them, in either direction."""

    network: str
    outside: int
    stopped: int
    admitted: int


class IsolationResult(Report):
    """The proof: ``proven`` if all canaries went as they have to and nothing got outside; else ``reason``."""

    proven: bool
    reason: str = ""
    canaries: tuple[Canary, ...] = ()
    packets: tuple[PacketCount, ...] = ()


class HookParams(Report):
    """Run ``file`` of the bundle: Ansible tasks, with ``context`` and ``vars`` as variables, and the named secrets.

    It is killed after ``timeout_s``, with all that it has begun. As any task it may run again after a crash.
    """

    bundle: Digest
    file: BundlePath
    timeout_s: float
    secrets: tuple[SecretName, ...] = ()
    vars: dict[Variable, Any] = {}
    context: dict[str, Any] = {}


class HookResult(Report):
    """How a hook ended. ``output`` is what it wrote, its middle left out where it is long, secrets masked.

    ``user`` is whom it ran as; ``killed`` why it was ended, empty where it ended by itself. ``done`` counts the tasks
    that went well, ``changed`` those of them that changed something.
    """

    ok: bool
    summary: str
    seconds: float
    user: str = ""
    killed: Literal["", "timeout", "output", "files"] = ""
    done: int = 0
    changed: int = 0
    output: str = ""
    output_bytes: int = 0


class SweepParams(Report):
    """Remove everything that carries ``tag``."""

    tag: str


class SweepResult(Report):
    """What was removed, and what still carries the tag (must be empty)."""

    removed: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()


class DropCheckpointParams(Report):
    """Tombstone a checkpoint's manifest, then drop its points. Refused while something uses them."""

    group_id: str
    checkpoint_id: str


class ScrubParams(Report):
    """Read a checkpoint back and compare it with its manifest. ``tag``, the run, leases its points meanwhile."""

    group_id: str
    checkpoint_id: str
    tag: str


class ScrubResult(Report):
    """What was found out: about the checkpoint first, then about others that share its damage."""

    addenda: tuple[Addendum, ...]


class CatalogScanResult(Report):
    """Every live manifest in the site's store, and what was found out about them."""

    manifests: tuple[Manifest, ...] = ()
    addenda: tuple[Addendum, ...] = ()


class CatalogCheckParams(Report):
    """Hold the manifests of a site's store against its native points; ``catalog_id``: of whose manifests."""

    catalog_id: str


class StoredManifest(Report):
    """A manifest of the store, in short. ``digest`` is the SHA-256 of its canonical JSON."""

    checkpoint_id: str
    group_id: str
    plan: str
    epoch: int
    generation: int
    sequence: int
    digest: str


class MissingPoint(Report):
    """A native point that a manifest names and the platform does not have."""

    checkpoint_id: str
    disk_key: str
    point: str


class CatalogCheckResult(Report):
    """What a site holds: manifests, the points that they miss, points that none names, drafts.

    ``foreign`` counts the manifests of other catalogues; their points are no orphans.
    """

    manifests: tuple[StoredManifest, ...] = ()
    missing: tuple[MissingPoint, ...] = ()
    orphans: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    foreign: int = 0
    findings: tuple[Finding, ...] = ()


class BundlePutParams(Report):
    """Keep a sealed site bundle under ``key`` in the manifest store; of older ones of its catalogue ``keep`` stay."""

    key: str = Field(max_length=255)
    data: str
    keep: int = Field(3, ge=0)


class BundlePutResult(Report):
    """The keys of the catalogue's bundles that the site holds now, oldest first."""

    keys: tuple[str, ...] = ()


PARAMS: dict[str, type[Report]] = {
    "inventory": Empty,
    "check": Empty,
    "point": PointParams,
    "replicate": ReplicateParams,
    "release": ReleaseParams,
    "machine-stop": MachineStopParams,
    "machine-start": MachineParams,
    "machine-fence": MachineFenceParams,
    "machine-unfence": MachineParams,
    "machine-untrack": MachineParams,
    "machine-detach": MachineParams,
    "machine-retire": MachineParams,
    "network-create": NetworkCreateParams,
    "machine-create": MachineCreateParams,
    "machine-prepare": MachinePrepareParams,
    "hook": HookParams,
    "machine-power-on": MachineParams,
    "machine-probe": ProbeParams,
    "machine-look": LookParams,
    "isolation": IsolationParams,
    "sweep": SweepParams,
    "drop-checkpoint": DropCheckpointParams,
    "catalog-scan": Empty,
    "catalog-check": CatalogCheckParams,
    "bundle-put": BundlePutParams,
    "scrub": ScrubParams,
    "dns-update": DnsUpdateParams,
}
RESULTS: dict[str, type[Report]] = {
    "inventory": Inventory,
    "check": CheckResult,
    "point": PointResult,
    "replicate": ReplicateResult,
    "release": Empty,
    "machine-stop": MachineResult,
    "machine-start": MachineResult,
    "machine-fence": MachineResult,
    "machine-unfence": MachineResult,
    "machine-untrack": UntrackResult,
    "machine-detach": DetachResult,
    "machine-retire": RetireResult,
    "network-create": Empty,
    "machine-create": MachineCreateResult,
    "machine-prepare": MachinePrepareResult,
    "hook": HookResult,
    "machine-power-on": MachineResult,
    "machine-probe": ProbeResult,
    "machine-look": LookResult,
    "isolation": IsolationResult,
    "sweep": SweepResult,
    "drop-checkpoint": Empty,
    "catalog-scan": CatalogScanResult,
    "catalog-check": CatalogCheckResult,
    "bundle-put": BundlePutResult,
    "scrub": ScrubResult,
    "dns-update": DnsUpdateResult,
}


class Progress(Report):
    """How far a running task is; counters in bytes, ``note`` a short sentence for people."""

    done_bytes: int = 0
    total_bytes: int = 0
    note: str = ""
    detail: dict[str, Any] = {}


class RateShare(Report):
    """What a node may take of a limited resource, for ``valid_s`` from when it asked; None is without limit.

    Of ``calls:SITE`` these are calls of the provider's API, of all others bytes.

    The control plane hands out no more than the limit in all. A node that cannot ask again in time goes on with
    ``later_bytes_per_s``, which is kept free for it.
    """

    resource: str
    bytes_per_s: float | None = None
    later_bytes_per_s: float | None = None
    burst_bytes: float | None = None
    valid_s: float


class DialOrder(Report):
    """A source node keeps connections open to a target node that listens for it."""

    site: str
    node: str
    thumbprint: str
    address: str
    connections: int | Literal["auto"] = "auto"


class DraftCover(Report):
    """What of a disk's draft is durable, as ascending ranges (start, stop); never more than is."""

    task_id: str
    disk_key: str
    draft_key: str
    ranges: tuple[tuple[int, int], ...] = ()


class PollRequest(Report):
    """A node's call for work, which is its heartbeat too.

    ``incarnation`` changes with every start of the process; ``running`` are the ids of the tasks that it holds.
    ``recoveries`` is how many tasks of recoveries it works on at once: it is given no more, so that other nodes get the
    rest. ``data_port`` is where its data listener waits. ``standing`` is that of the newest reply that the node has
    obeyed: it holds that reply's shares and no others. ``drafts`` are those that have grown since the last poll that
    was answered. ``kit``: what the node has for guests and hooks.
    """

    node: str
    incarnation: str
    version: str
    platform: str
    data_port: int
    running: tuple[str, ...] = ()
    recoveries: int | None = Field(None, ge=0)
    generation: int = 0
    standing: str = Field("", max_length=64)
    drafts: tuple[DraftCover, ...] = Field((), max_length=4096)
    kit: Kit | None = None
    wait_s: float = Field(10.0, ge=0, le=30)


class PollReply(Report):
    """Work to begin, work to stop, and the catalog generation that the node must obey from now on.

    ``limits`` are the rates that hold for the node's cycles, ``links`` the connections that it keeps open from its
    side; both are whole: what is not in them is over. ``standing`` names the two.
    """

    tasks: tuple[Task, ...] = ()
    cancel: tuple[str, ...] = ()
    generation: int = 0
    grant_key: str = Field("", description="PEM of the public key that signs grants")
    limits: tuple[RateShare, ...] = ()
    links: tuple[DialOrder, ...] = ()
    standing: str = ""


class TaskReport(Report):
    """A task's end. ``error`` is :meth:`farshore.errors.FarshoreError.to_dict`."""

    state: Literal["succeeded", "failed"]
    term: int
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    stats: CycleStats | None = None


class Room(Report):
    """What a node that reports could take on: up to ``recoveries`` tasks of recoveries at once, with what it has."""

    incarnation: str
    generation: int
    recoveries: int = Field(ge=0)


class EndedTask(TaskReport):
    """The end of one of several tasks."""

    task_id: str


class ReportRequest(Report):
    """Ends of tasks, and the ``room`` of a node that would have others for them in the answer."""

    reports: tuple[EndedTask, ...] = Field(min_length=1, max_length=128)
    room: Room | None = None


class Refusal(Report):
    """Why a report is not wanted: somebody else has the task, or nobody knows it."""

    task_id: str
    code: str
    message: str


class ReportReply(Report):
    """What of the reports is not wanted, and the next tasks of recoveries; the rest comes with polls."""

    generation: int = 0
    tasks: tuple[Task, ...] = ()
    refused: tuple[Refusal, ...] = ()
