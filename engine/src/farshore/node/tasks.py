"""One handler per kind of task, and the table of them.

A handler takes validated parameters and returns the kind's result; it raises errors of :mod:`farshore.errors`. Every
handler may be run again with the same parameters.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from farshore.checkpoints import addenda, catalog, publish
from farshore.checkpoints import scrub as scrubbing
from farshore.errors import Invalid, NotFound, Permanent
from farshore.model import guest as guests
from farshore.model import task as model
from farshore.model.base import Report
from farshore.model.checkpoint import LEVELS
from farshore.model.machine import Finding, Inventory
from farshore.node import mounts, stored
from farshore.node.drafts import cover_of
from farshore.node.log import fields
from farshore.node.marks import Marks
from farshore.node.worker import Call, KeyedLocks
from farshore.platforms.contract import Compute, Platform
from farshore.recovery.hooks.player import Player
from farshore.recovery.probes import ansible, relayed, runner
from farshore.recovery.secrets import Secrets
from farshore.recovery.steps import dns, instantiate, looking, power, prepare
from farshore.recovery.steps import sweep as sweeping
from farshore.replication.flow import NodeWindow
from farshore.replication.group import replicate as replicate_group
from farshore.transport.links import Links

_log = logging.getLogger(__name__)
#: Console text that a probe result carries.
CONSOLE_TAIL_BYTES: Final = 16384


Elsewhere = Callable[[model.ReplicateParams, Call, Ed25519PublicKey | None], model.ReplicateResult]


@dataclass(slots=True)
class Site:
    """What handlers work with: the site's platform and this node's part in the data path."""

    platform: Platform
    links: Links
    window: NodeWindow
    journal_dir: Path
    marks: Marks
    locks: KeyedLocks
    grant_key: Callable[[], Ed25519PublicKey | None]
    #: Runs replications in other processes, where there are any.
    elsewhere: Elsewhere | None = None
    #: Plays files of Ansible tasks; None in a worker process, which gets none.
    player: Player | None = None
    #: What plans name but do not hold; None in a worker process.
    secrets: Secrets | None = None

    def limit(self, name: str, per_s: float | None) -> None:
        """Hold this process to a rate: of bytes, or of calls of an operation of the provider."""
        if name.partition(":")[0] not in {"writes", "reads"}:
            self.window.limit(name, per_s)
        elif self.platform.set_rate is not None:
            self.platform.set_rate(name.rpartition(":")[2], per_s)

    def compute(self) -> Compute:
        """Return the platform's machines.

        Raises:
            Permanent: it has none.
        """
        if self.platform.compute is None:
            raise Permanent(
                f"platform {self.platform.type!r} keeps disks only; it has no machines to act on",
                code="no-compute",
                hint="Recover at a site whose platform runs machines.",
            )
        return self.platform.compute


def inventory(site: Site, _params: model.Empty, _call: Call) -> Inventory:
    """Return what the site holds."""
    found = site.platform.inventory()
    if found.pool is None or found.pool.filesystem:
        return found
    pool = found.pool.model_copy(update={"filesystem": mounts.filesystem_of(Path(found.pool.path))})
    return found.model_copy(update={"pool": pool})


def check(site: Site, _params: model.Empty, _call: Call) -> model.CheckResult:
    """Prove that what is needed works here."""
    findings: list[Finding] = []
    if site.platform.compute is not None:
        findings.extend(site.platform.compute.check())
    pool = site.platform.target.usage()
    if pool.free_bytes < pool.capacity_bytes // 20:
        findings.append(
            Finding(
                code="pool-nearly-full",
                severity="warning",
                message=f"the pool {pool.path} has less than 5 % free",
                remedy="Make the pool larger or keep fewer checkpoints.",
                subject=pool.path,
            )
        )
    return model.CheckResult(findings=tuple(findings))


def point(site: Site, params: model.PointParams, _call: Call) -> model.PointResult:
    """Take one source point over all disks of the machines."""
    for machine_id in params.machine_ids:
        site.marks.admit(machine_id, params.epoch, reads=True)
    snapshot = site.platform.source.snapshot(
        params.group_id, params.point_id, params.machine_ids, params.bases, params.consistency, params.quiesce
    )
    if params.demanded and LEVELS.index(snapshot.level) < LEVELS.index(params.consistency):
        site.platform.source.release(params.group_id, params.point_id, params.machine_ids, applied=False)
        why = "; ".join(snapshot.evidence.get("below_application", ()))
        raise Permanent(
            f"the point would be of level {snapshot.level}, not {params.consistency}{': ' if why else ''}{why}",
            code="consistency-not-reached",
            field="consistency",
            hint="Nothing was kept. Put right what is named, or ask for a lower level.",
            level=snapshot.level,
            reasons=list(snapshot.evidence.get("below_application", ())),
        )
    return model.PointResult(
        point_id=snapshot.point_id,
        taken_at=snapshot.taken_at,
        level=snapshot.level,
        evidence=dict(snapshot.evidence),
        machines=snapshot.machines,
        disks=tuple(
            model.PointDisk(
                disk_key=disk.disk_key, size_bytes=disk.size_bytes, incremental=disk.incremental, reason=disk.reason
            )
            for disk in snapshot.disks
        ),
    )


def replicate(site: Site, params: model.ReplicateParams, call: Call) -> model.ReplicateResult:
    """Pull a source point into new native points and publish them, here or in a worker process."""
    if site.elsewhere is None:
        return replicate_here(site, params, call)
    return site.elsewhere(params, call, site.grant_key())


def replicate_here(site: Site, params: model.ReplicateParams, call: Call) -> model.ReplicateResult:
    """Pull a source point into new native points and publish them, in this process."""
    task_id = call.task.task_id
    return replicate_group(
        params,
        target=site.platform.target,
        manifests=site.platform.manifests,
        links=site.links,
        journal_dir=site.journal_dir,
        on_progress=call.progress,
        on_drafts=lambda drafts: call.show_drafts(cover_of(task_id, params, drafts)),
        cancel=call.cancel,
        window=site.window,
        grant_key=site.grant_key(),
        adopt=site.platform.adopt,
    )


def release(site: Site, params: model.ReleaseParams, _call: Call) -> model.Empty:
    """End the reading of a source point."""
    site.platform.source.release(params.group_id, params.point_id, params.machine_ids, applied=params.applied)
    return model.Empty()


def machine_stop(site: Site, params: model.MachineStopParams, call: Call) -> model.MachineResult:
    """Stop a machine and prove that it is off."""
    return power.stop(
        site.compute(),
        params.machine_id,
        params.timeout_s,
        params.on_timeout,
        clock=time.monotonic,
        wait=call.cancel.wait,
    )


def machine_start(site: Site, params: model.MachineParams, call: Call) -> model.MachineResult:
    """Power a machine on, unless it was fenced in a higher epoch, and see that it boots where that can be told."""
    site.marks.admit(params.machine_id, params.epoch)
    return power.start(
        site.compute(), params.machine_id, site.platform.boots, clock=time.monotonic, wait=call.cancel.wait
    )


def machine_fence(site: Site, params: model.MachineFenceParams, call: Call) -> model.MachineResult:
    """Keep a machine from starting; the node's own mark comes first, so that a crash in between leaves it safe."""
    compute = site.compute()
    site.marks.fence(params.machine_id, params.epoch)
    result = power.fence(compute, params.machine_id, params.epoch)
    if not params.power_off:
        return result
    # After the fence, so that nobody starts it again in between.
    power.cut(compute, params.machine_id, clock=time.monotonic, wait=call.cancel.wait)
    return model.MachineResult(machine_id=params.machine_id, power="off", fenced=True)


def machine_unfence(site: Site, params: model.MachineParams, _call: Call) -> model.MachineResult:
    """Lift a fence of this epoch or a lower one; the node's own mark goes last."""
    site.marks.admit(params.machine_id, params.epoch)
    result = power.unfence(site.compute(), params.machine_id)
    site.marks.lift(params.machine_id, params.epoch)
    return result


def machine_untrack(site: Site, params: model.MachineParams, _call: Call) -> model.UntrackResult:
    """Remove every trace of ours from a machine, and read back that none is left."""
    return stored.untrack(site.platform, params.machine_id)


def machine_detach(site: Site, params: model.MachineParams, _call: Call) -> model.DetachResult:
    """Let a machine leave the chain of points; what copies is the platform, and it goes on without us."""
    return site.compute().detach(params.machine_id)


def machine_retire(site: Site, params: model.MachineParams, _call: Call) -> model.RetireResult:
    """Delete an old primary with its disks; the node's own mark stays, should somebody bring it back."""
    if site.platform.retire is None:
        raise Permanent(
            f"platform {site.platform.type} does not delete machines",
            code="retire-unsupported",
            hint="Delete it by hand.",
        )
    return site.platform.retire(params.machine_id, params.epoch)


def network_create(site: Site, params: model.NetworkCreateParams, call: Call) -> model.Empty:
    """Make an isolated network."""
    with site.locks.hold(call, f"tag:{params.tag}", shared=True):
        instantiate.network(site.compute(), params)
    return model.Empty()


def machine_create(site: Site, params: model.MachineCreateParams, call: Call) -> model.MachineCreateResult:
    """Make a machine from sealed points, powered off."""
    with site.locks.hold(call, f"tag:{params.tag}", shared=True):
        return instantiate.machine(site.compute(), site.platform.target, params)


def machine_prepare(site: Site, params: guests.MachinePrepareParams, call: Call) -> guests.MachinePrepareResult:
    """Check, repair and readdress a machine that was made and is off."""
    site.marks.admit(params.machine_id, params.epoch)
    compute = site.compute()
    seen = prepare.as_made(params, site.platform.type, compute.facts(params.machine_id))
    return prepare.machine(compute, seen, call.check)


def hook(site: Site, params: model.HookParams, call: Call) -> model.HookResult:
    """Play a file of Ansible tasks before or after a part of a run."""
    if site.player is None:
        raise Permanent("this process plays no hooks", code="no-player")
    result = site.player.play(
        params.bundle,
        params.file,
        params.timeout_s,
        is_cancelled=call.cancel.is_set,
        context=params.context,
        variables=params.vars,
        secrets=params.secrets,
    )
    call.check()
    return result


def dns_update(site: Site, params: guests.DnsUpdateParams, _call: Call) -> guests.DnsUpdateResult:
    """Enter names of machines in DNS."""
    key = params.dns.key
    if key is not None and site.secrets is None:
        raise Permanent("this process has no secrets", code="no-secrets")
    return dns.update(params, site.secrets.read(key) if key is not None and site.secrets is not None else None)


def machine_probe(site: Site, params: model.ProbeParams, call: Call) -> model.ProbeResult:
    """Try a machine's probes until green or out of time."""
    compute = site.compute()
    reach = site.platform.reach
    outcomes = runner.run(
        params.probes,
        machine_id=params.machine_id,
        compute=compute,
        address=runner.addresses_of(compute, params.machine_id, params.address),
        clock=time.monotonic,
        wait=call.cancel.wait,
        secret=site.secrets.read if site.secrets is not None else runner.no_secret,
        others=ansible.looker(site.player, params.bundle, params.context, call.cancel.is_set),
        relay=relayed.Relay(partial(reach, params.machine_id)) if reach is not None else None,
    )
    call.check()
    return model.ProbeResult(
        machine_id=params.machine_id,
        green=all(outcome.green for outcome in outcomes),
        outcomes=outcomes,
        console=runner.console_tail(compute, params.machine_id, CONSOLE_TAIL_BYTES),
    )


def machine_look(site: Site, params: model.LookParams, _call: Call) -> model.LookResult:
    """Take a picture of a machine's screen and the end of its console text."""
    return looking.machine(site.compute(), params.machine_id, time.time)


def isolation(site: Site, params: model.IsolationParams, call: Call) -> model.IsolationResult:
    """Prove that the isolated networks of a run lead nowhere."""
    with site.locks.hold(call, f"tag:{params.tag}", shared=True), site.locks.hold(call, "isolation"):
        return looking.isolation(site.compute(), params)


def sweep(site: Site, params: model.SweepParams, call: Call) -> model.SweepResult:
    """Remove everything that carries the tag, once nothing with it is being made."""
    with site.locks.hold(call, f"tag:{params.tag}"):
        return sweeping.sweep(site.platform.compute, site.platform.target, params.tag)


def drop_checkpoint(site: Site, params: model.DropCheckpointParams, _call: Call) -> model.Empty:
    """Tombstone a checkpoint's manifest, then drop its points; one that is gone is what was asked for."""
    with contextlib.suppress(NotFound):
        publish.withdraw(site.platform.manifests, site.platform.target, params.group_id, params.checkpoint_id)
    return model.Empty()


def catalog_scan(site: Site, _params: model.Empty, _call: Call) -> model.CatalogScanResult:
    """Return every live manifest of the site's store, and what is known of them."""
    manifests, findings = catalog.scan(site.platform.manifests)
    for finding in findings:
        _log.warning("the catalog has a finding", extra=fields(code=finding.code, subject=finding.subject))
    return model.CatalogScanResult(manifests=tuple(manifests), addenda=tuple(addenda.load(site.platform.manifests)))


def catalog_check(site: Site, params: model.CatalogCheckParams, _call: Call) -> model.CatalogCheckResult:
    """Hold the manifests of the site's store against its points."""
    return stored.check(site.platform.manifests, site.platform.target, params.catalog_id)


def bundle_put(site: Site, params: model.BundlePutParams, _call: Call) -> model.BundlePutResult:
    """Keep a sealed site bundle beside the manifests; older ones go."""
    return stored.put_bundle(site.platform.manifests, params)


def scrub(site: Site, params: model.ScrubParams, call: Call) -> model.ScrubResult:
    """Read a checkpoint back and compare it with its manifest."""
    found = scrubbing.scrub(
        site.platform.manifests,
        site.platform.target,
        params.group_id,
        params.checkpoint_id,
        params.tag,
        on_progress=call.progress,
        check=call.check,
    )
    return model.ScrubResult(addenda=tuple(found))


LaneName = Literal["replicate", "machine", "hook", "quick"]


@dataclass(frozen=True, slots=True)
class Handler:
    """How a kind is executed: in which lane, by what, and one at a time for which object."""

    lane: LaneName
    function: Callable[[Site, Any, Call], Report]
    one_per: str = ""


#: ``one_per``: the parameter whose equal values are never worked on at once. Fencing is quick: it waits for no probe.
HANDLERS: Final[dict[str, Handler]] = {
    "inventory": Handler("quick", inventory),
    "check": Handler("quick", check),
    "point": Handler("quick", point, "group_id"),
    "replicate": Handler("replicate", replicate, "group_id"),
    "release": Handler("quick", release, "group_id"),
    "machine-stop": Handler("machine", machine_stop, "machine_id"),
    "machine-start": Handler("machine", machine_start, "machine_id"),
    "machine-fence": Handler("quick", machine_fence, "machine_id"),
    "machine-unfence": Handler("quick", machine_unfence, "machine_id"),
    "machine-untrack": Handler("quick", machine_untrack, "machine_id"),
    # Holds nobody up: the platform keeps it apart from points, and a machine may be stopped while it is copied.
    "machine-detach": Handler("quick", machine_detach),
    "machine-retire": Handler("machine", machine_retire, "machine_id"),
    "network-create": Handler("machine", network_create, "name"),
    "machine-create": Handler("machine", machine_create, "name"),
    "machine-prepare": Handler("machine", machine_prepare, "machine_id"),
    "dns-update": Handler("machine", dns_update),
    "hook": Handler("hook", hook),
    "machine-power-on": Handler("machine", machine_start, "machine_id"),
    "machine-probe": Handler("machine", machine_probe),
    "machine-look": Handler("machine", machine_look, "machine_id"),
    "isolation": Handler("machine", isolation),
    "sweep": Handler("machine", sweep),
    "drop-checkpoint": Handler("quick", drop_checkpoint, "group_id"),
    "catalog-scan": Handler("quick", catalog_scan),
    "catalog-check": Handler("quick", catalog_check),
    "bundle-put": Handler("quick", bundle_put),
    "scrub": Handler("machine", scrub, "checkpoint_id"),
}


def lane_of(kind: str) -> LaneName:
    """Return the lane of a kind; unknown ones go to the quick lane, where they fail."""
    handler = HANDLERS.get(kind)
    return handler.lane if handler else "quick"


def execute(site: Site, call: Call) -> dict[str, Any]:
    """Run the handler of ``call`` and return its result as JSON values.

    Raises:
        Invalid: the parameters are not those of the kind; ``field`` names the first one that is wrong.
        FarshoreError: what the handler raised.
    """
    task = call.task
    handler = HANDLERS.get(task.kind)
    if handler is None:
        raise Invalid(f"this node knows no task of kind {task.kind!r}", code="task-kind-unknown", field="kind")
    try:
        params = model.PARAMS[task.kind].model_validate(task.params)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(("params", *(str(part) for part in first["loc"])))
        raise Invalid(f"task {task.kind}: {field}: {first['msg']}", code="task-invalid", field=field) from error
    with _turn(site, call, handler, params):
        result = handler.function(site, params, call)
    # Checked before it leaves: what the other side would refuse is our bug, and shows here.
    return model.RESULTS[task.kind].model_validate(result.model_dump()).model_dump(mode="json")


def _turn(site: Site, call: Call, handler: Handler, params: Report) -> contextlib.AbstractContextManager[None]:
    if not handler.one_per:
        return contextlib.nullcontext()
    if isinstance(params, model.ReplicateParams):
        value = params.manifest.group_id
    else:
        value = cast("str", getattr(params, handler.one_per))
    return site.locks.hold(call, f"{handler.one_per}:{value}")
