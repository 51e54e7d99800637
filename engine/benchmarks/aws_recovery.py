"""Machines of AWS, told to the platform as a node's tasks tell it, before the double.

Seven tales of the shop's database. ``rehearsal``: a drill and its end. ``failover``: the machine is made for good, and
taken away. ``fence``: one is stopped and fenced, and let go of again. ``way back``: the disks of an old primary that
rests are taken in as points, its successor gets its name; it goes. ``guest``: one is changed before its first start.
``helper``: a drill's network admits the operator's helper, who tries a probe. ``agent``: a command is run in a machine.
Whatever may pass is asked again with the same words; a run that has failed is swept, and done anew under another tag.
What has come of each phase is read with eyes of their own, and in the end nothing may be left.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from doubles import aws_site
from doubles.aws import AwsDouble
from doubles.aws_helper import HelperHost, await_running
from farshore.errors import FarshoreError, NotFound, Reconnect, Retry
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.plan import Probe, Purpose
from farshore.model.probe import GuestAgentProbe, HttpProbe
from farshore.model.task import (
    DiskSpec,
    IsolationParams,
    MachineCreateParams,
    NetworkCreateParams,
    NicSpec,
)
from farshore.platforms.aws import retiring, tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.seeds import Seeds
from farshore.platforms.aws.target import AwsTarget
from farshore.platforms.aws.types import Types
from farshore.platforms.contract import Boots
from farshore.recovery.probes import runner
from farshore.recovery.probes.relayed import Relay
from farshore.recovery.steps import instantiate, looking, power
from farshore.recovery.steps import sweep as sweeping
from farshore.units import GIB, MIB

from benchmarks.aws_story import patiently

T = TypeVar("T")

#: The phases of each tale.
TALES: Final = {
    "rehearsal": ("drill", "drill's end"),
    "failover": ("failover", "sweep"),
    "fence": ("fence", "lift"),
    "way back": ("adopt", "failback", "retire"),
    "guest": ("prepare", "launch"),
    "helper": ("admit", "probe", "drill's end"),
    "agent": ("command",),
}
_NAME: Final = "db"
_NETWORK: Final = "fs-lan-7"
_SUBNET: Final = "10.77.0.0/24"
_ADDRESS: Final = "10.77.0.20"
_ATTEMPTS: Final = 16
_EPOCH: Final = 3
_STOP_S: Final = 30.0
_BOOT_S: Final = 60.0


class Node:
    """What a node that has just started has open."""

    def __init__(self, account: Account) -> None:
        self.target = AwsTarget(account)
        self.compute = AwsCompute(account, Types(account), self.target.usage)
        self.adopt = Seeds(account, self.target, self.compute.facts).adopt


class Recovery:
    """One tale. ``act`` plays a phase, ``look`` says what has come of it, ``verdict`` takes all away and tells."""

    def __init__(self, aws: AwsDouble, shared: Account, scratch: Path, tale: str) -> None:
        aws.clear()
        aws_site.make_bucket(aws)
        self.aws = aws
        self.phases = TALES[tale]
        #: What each disk begins with, by its name.
        self.held = {"sda1": b"boots   ", "sdf": b"the rows"}
        self._kept = dict(self.held)  # in the points, whatever becomes of machines
        self._ec2 = aws.client("ec2")
        more = {"probe_helper": "tagged"} if tale == "helper" else {}
        self._account = aws_site.account(aws_site.config(aws, scratch, instance_families=["t3"], **more), shared)
        self._ran = scratch / "ran"
        self._helper: HelperHost | None = None
        self._node = Node(self._account)
        self._wrong: list[str] = []
        self._points: dict[str, str] = {}
        self._runs: list[str] = []
        zone = [{"Name": "availability-zone", "Values": [self._account.settings.zone]}]
        self._home = str(self._ec2.describe_subnets(Filters=zone)["Subnets"][0]["SubnetId"])
        self._machine = self._old = ""
        if tale in {"fence", "agent"}:
            self._machine = self._made_by_others()
        if tale == "agent":
            await_running(aws, self._machine)
            aws.agent(self._machine)
        if tale == "helper":
            settings = self._account.settings
            self._helper = HelperHost(aws, tags.site_of(settings.bucket, settings.prefix))
        others = set(aws.things())
        if tale == "way back":
            self._old = self._made_by_others()
            self._rest(self._old)
        self._before = set(aws.things())
        #: What goes with the old primary.
        self._doomed = {name for name in self._before - others if name.startswith(("i-", "vol-", "eni-"))}
        if tale in {"rehearsal", "failover", "guest", "helper"}:
            self._points = {disk: self._point(text) for disk, text in self.held.items()}
        if tale == "guest":
            self._machine = self._run(self._make)

    def act(self, phase: str) -> None:
        """Play a phase as the control plane has it played."""
        self._node = Node(self._account)
        _PHASES[phase](self)

    def look(self, phase: str) -> None:
        """See what has come of a phase."""
        self._wrong += [f"after {phase}: {text}" for text in _LOOKS[phase](self)]

    def verdict(self) -> list[str]:
        """Take all away, then say what was wrong and what is left."""
        self._node = Node(self._account)
        if self._helper is not None:
            self._helper.close()
        for tag in self._runs:
            patiently(partial(self._sweep, tag))
        for point in self._points.values():
            patiently(partial(self._node.target.drop, point))
        left = sorted(self._new())
        gone = sorted(self._before - set(self.aws.things()))
        return [*self._wrong, *(f"left: {name}" for name in left), *(f"lost: {name}" for name in gone)]

    # --- phases --------------------------------------------------------------------------------------------------

    def drill(self) -> None:
        """Rehearse: network, machine, proof of isolation, power, looks."""

        def run(tag: str) -> str:
            node = self._node
            network = NetworkCreateParams(tag=tag, name=_NETWORK, subnet=_SUBNET)
            _task(lambda: instantiate.network(node.compute, network))
            made = _task(lambda: instantiate.machine(node.compute, node.target, self._order(tag, "drill", _NETWORK)))
            proof = _task(
                lambda: looking.isolation(node.compute, IsolationParams(tag=tag, networks=(_NETWORK,), canaries=True))
            )
            if not proof.proven:
                self._wrong.append(f"isolation is not proven: {proof.reason}")
            self._start(made.machine_id)
            _task(lambda: looking.machine(node.compute, made.machine_id, time.time))
            _task(lambda: node.compute.addresses(made.machine_id))
            _task(node.compute.inventory)
            return made.machine_id

        self._machine = self._run(run)

    def admit(self) -> None:
        """Make a drill's network that admits the helper."""
        self._runs.append(tag := "run-1")
        network = NetworkCreateParams(tag=tag, name=_NETWORK, subnet=_SUBNET, hosts={"any": _ADDRESS})
        _task(lambda: instantiate.network(self._node.compute, network))

    def probe(self) -> None:
        """Have the helper try a probe, and prove the network's isolation with it there."""
        wanted = HttpProbe(type="http", port=8080, contains="serving", timeout=60.0, interval=0.1)
        self._green(wanted)
        params = IsolationParams(tag=self._runs[-1], networks=(_NETWORK,), canaries=True)
        proof = _task(lambda: looking.isolation(self._node.compute, params))
        if not proof.proven:
            self._wrong.append(f"isolation is not proven: {proof.reason}")

    def command(self) -> None:
        """Have a command run in the machine."""
        line = f"echo ran >>{self._ran}"
        self._green(GuestAgentProbe(type="guest_agent", command=("/bin/sh", "-c", line), timeout=60.0, interval=0.1))

    def _green(self, wanted: Probe) -> None:
        """Try a probe as a node does; say what came of it if it is not green."""
        compute, machine_id = self._node.compute, self._machine
        [outcome] = runner.run(
            [wanted],
            machine_id=machine_id,
            compute=compute,
            address=runner.addresses_of(compute, machine_id, None),
            clock=time.monotonic,
            wait=threading.Event().wait,
            relay=Relay(lambda: compute.reach(machine_id)),
        )
        if not outcome.green:
            self._wrong.append(f"the probe is not green: {outcome.detail}")

    def failover(self) -> None:
        """Make the machine in the plan's network, for good."""

        def run(tag: str) -> str:
            self._machine = self._make(tag)
            self.launch()
            return self._machine

        self._machine = self._run(run)

    def prepare(self) -> None:
        """Change the guest while it is off: a part of the disk that it boots from."""

        def once() -> None:
            with self._node.compute.open_disks(self._machine) as disks:
                for disk in disks:
                    if disk.boot:
                        with disk.path.open("r+b") as image:
                            image.write(b"prepared")

        _task(once)
        self.held = {**self.held, "sda1": b"prepared"}

    def launch(self) -> None:
        """Start the machine; it is here to stay."""
        self._start(self._machine)
        _task(lambda: self._node.compute.detach(self._machine))

    def _make(self, tag: str) -> str:
        node, order = self._node, self._order(tag, "failover", self._home)
        return _task(lambda: instantiate.machine(node.compute, node.target, order)).machine_id

    def failback(self) -> None:
        """Make its successor at home, which gets the name of the old primary."""

        def run(tag: str) -> str:
            node, order = self._node, self._order(tag, "failback", self._home)
            made = _task(lambda: instantiate.machine(node.compute, node.target, order))
            self._start(made.machine_id)
            return made.machine_id

        self._machine = self._run(run)

    def retire(self) -> None:
        """Delete the old primary; that it is not there any more is as good."""
        with contextlib.suppress(NotFound):
            _task(lambda: retiring.remove(self._account, self._old, _EPOCH))

    def fence(self) -> None:
        """Stop the machine and fence it."""
        self._rest(self._machine)

    def lift(self) -> None:
        """Lift the fence and start it again."""
        _task(lambda: power.unfence(self._node.compute, self._machine))
        self._start(self._machine)

    def adopt(self) -> None:
        """Take in what its disks hold."""
        for disk in self.held:
            image = f"machine:{self._old}/{disk}"
            self._points[disk] = _task(
                lambda disk=disk, image=image: self._node.adopt(f"{_NAME}/{disk}", GIB, image, f"seed.{disk}")  # type: ignore[misc]
            )

    def end(self) -> None:
        """Sweep the last run."""
        _task(lambda: self._sweep(self._runs[-1]))

    # --- what they are made of -----------------------------------------------------------------------------------

    def _run(self, run: Callable[[str], str]) -> str:
        """Do a run; one that has failed is swept, and done once more as another one."""
        self._runs.append(tag := f"run-{len(self._runs) + 1}")
        try:
            return run(tag)
        except FarshoreError as error:
            self._wrong.append(f"the run has failed: {type(error).__name__} {error}")
            patiently(partial(self._sweep, tag))
        self._runs.append(tag := f"run-{len(self._runs) + 1}")
        return run(tag)

    def _start(self, machine_id: str) -> None:
        compute, settings = self._node.compute, self._account.settings
        boots = Boots(compute.booted, settings.poll_s, _BOOT_S)
        _task(lambda: power.start(compute, machine_id, boots, clock=time.monotonic, wait=threading.Event().wait))

    def _rest(self, machine_id: str) -> None:
        """Stop a machine and fence it, as what is fenced at first contact is."""
        compute, wait = self._node.compute, threading.Event().wait
        _task(lambda: power.stop(compute, machine_id, _STOP_S, "power_off", clock=time.monotonic, wait=wait))
        _task(lambda: power.fence(compute, machine_id, _EPOCH))

    def _sweep(self, tag: str) -> None:
        found = sweeping.sweep(self._node.compute, self._node.target, tag)
        if found.remaining:
            raise Retry(f"{', '.join(found.remaining)} stay", code="swept-in-part")

    def _order(self, tag: str, purpose: Purpose, network: str) -> MachineCreateParams:
        facts = MachineFacts(
            machine_id="6a1b2c3d-0000-4000-8000-000000000001",
            name=_NAME,
            cpus=2,
            memory_bytes=900 * MIB,
            disks=tuple(DiskFacts(disk_id=disk, size_bytes=GIB, boot=disk == "sda1") for disk in self._points),
            nics=(NicFacts(mac="52:54:00:00:00:01", network="lan"),),
        )
        address = _ADDRESS if purpose == "drill" else None
        return MachineCreateParams(
            tag=tag,
            purpose=purpose,
            name=f"fs-{_NAME}-7" if purpose == "drill" else _NAME,
            facts=facts,
            cpus=2,
            memory_bytes=900 * MIB,
            disks=tuple(DiskSpec(disk_id=disk, point=at, size_bytes=GIB) for disk, at in self._points.items()),
            nics=(NicSpec(mac="52:54:00:00:00:01", network=network, address=address),),
            epoch=4,
            replaces=self._old or None,
        )

    def _made_by_others(self) -> str:
        """Return a machine that runs in the account, and that others have made."""
        instance = aws_site.Instance(self.aws, list(self.held))
        named = [{"Key": "Name", "Value": _NAME}]
        self._ec2.create_tags(Resources=[instance.machine_id], Tags=named)
        for disk, text in self.held.items():
            instance.write(instance.key(disk), 0, text)
        return str(instance.machine_id)

    def _point(self, text: bytes) -> str:
        """Return a point whose disk begins with ``text``."""
        volume = self._ec2.create_volume(Size=1, AvailabilityZone=self._account.settings.zone)["VolumeId"]
        with self.aws.volume(volume).open("r+b") as disk:
            disk.write(text)
        snapshot = str(self._ec2.create_snapshot(VolumeId=volume)["SnapshotId"])
        self._ec2.get_waiter("snapshot_completed").wait(
            SnapshotIds=[snapshot], WaiterConfig={"Delay": 0, "MaxAttempts": 50}
        )
        site = tags.site_of(self._account.settings.bucket, self._account.settings.prefix)
        self._ec2.create_tags(Resources=[snapshot], Tags=tags.tag_list({tags.SITE: site, tags.ROLE: tags.DRAFT_ROLE}))
        self._ec2.delete_volume(VolumeId=volume)
        return snapshot

    # --- what is seen --------------------------------------------------------------------------------------------

    def looks_made(self) -> list[str]:
        """Say what is wrong with the machine of the last run: it has to run, once, on its own disks."""
        texts = self._wrong_machine(self._machine, "running")
        alive = [one["InstanceId"] for one in self._instances()]
        texts += [f"{name} is there too" for name in alive if name not in {self._machine, self._old}]
        volumes = {name for name in self._new() if name.startswith("vol-")}
        if len(volumes) != len(self.held):
            texts.append(f"there are {len(volumes)} new volumes")
        return texts

    def looks_rehearsed(self) -> list[str]:
        """Say the same of a rehearsal, whose points are held until it is swept."""
        return [*self.looks_made(), *self._wrong_points(leased=True)]

    def looks_made_for_good(self) -> list[str]:
        """Say the same of one that stays: what it was launched from is gone, but for points."""
        shells = sorted(name for name in self._new() - set(self._points.values()) if name.startswith(("snap-", "ami-")))
        return [*self.looks_made(), *self._wrong_points(), *(f"{name} is still there" for name in shells)]

    def looks_admitted(self) -> list[str]:
        """Say what is wrong with the helper's place; then let a machine serve in the network, as a drill would."""
        if self._helper is None:
            return ["there is no helper"]
        found = self._helper.interfaces()
        groups = {name for name in self._new() if name.startswith("sg-")}
        if len(found) != 1 or "Attachment" in found[0] or len(groups) != 3:  # with the VPC's own
            return [f"the helper has the interfaces {found}, the network the groups {sorted(groups)}"]
        self._helper.plug()
        self._helper.serve(_ADDRESS)
        order = self._order(self._runs[-1], "drill", _NETWORK)
        self._machine = instantiate.machine(self._node.compute, self._node.target, order).machine_id
        self._start(self._machine)
        return []

    def looks_probed(self) -> list[str]:
        """Say what is wrong once the helper has tried a probe: it has one interface in the network."""
        if self._helper is None:
            return ["there is no helper"]
        places = [(one.get("Attachment") or {}).get("InstanceId") for one in self._helper.interfaces()]
        return [] if places == [self._helper.machine_id] else [f"the helper's interfaces are at {places}"]

    def looks_run(self) -> list[str]:
        """Say what is wrong once a command was run: it was run once."""
        ran = self._ran.read_text(encoding="utf-8") if self._ran.exists() else ""
        return [] if ran == "ran\n" else [f"the command was run {ran.count('ran')} times"]

    def looks_fenced(self) -> list[str]:
        """Say what is wrong with it once it is fenced."""
        return self._wrong_machine(self._machine, "stopped", barred=True)

    def looks_prepared(self) -> list[str]:
        """Say what is wrong with it once its guest was changed."""
        volumes = sorted(name for name in self._new() if name.startswith("vol-"))
        texts = [] if len(volumes) == len(self.held) else [f"there are the volumes {volumes}"]
        return [*texts, *self._wrong_machine(self._machine, "stopped"), *self._wrong_points(leased=True)]

    def looks_lifted(self) -> list[str]:
        """Say what is wrong with it once it is let go of."""
        return self._wrong_machine(self._machine, "running")

    def looks_rested(self) -> list[str]:
        """Say what is wrong with an old primary that rests."""
        return self._wrong_machine(self._old, "stopped", barred=True)

    def looks_adopted(self) -> list[str]:
        """Say what is wrong with the points that are made of its disks."""
        new = self._new()
        texts = [f"{name} is there too" for name in sorted(new - set(self._points.values()))]
        return [*texts, *self.looks_rested(), *self._wrong_points(leased=False)]

    def looks_back(self) -> list[str]:
        """Say what is wrong with both, once the successor runs."""
        names = {one["InstanceId"]: tags.tag_map(one).get("Name", "") for one in self._instances()}
        texts = [] if names.get(self._machine) == _NAME else [f"the successor is called {names.get(self._machine)}"]
        if names.get(self._old) in {_NAME, None}:
            texts.append(f"the old primary is called {names.get(self._old)}")
        return [*texts, *self.looks_rested(), *self.looks_made(), *self._wrong_points()]

    def looks_retired(self) -> list[str]:
        """Say what is left of the old primary, and what is wrong with its successor."""
        left = sorted(self._doomed & set(self.aws.things()))
        self._before -= self._doomed
        return [*(f"{name} is still there" for name in left), *self.looks_made(), *self._wrong_points()]

    def looks_swept(self) -> list[str]:
        """Say what a sweep has left."""
        left = sorted(self._new() - set(self._points.values()))
        return [*(f"{name} is still there" for name in left), *self._wrong_points(leased=False)]

    def _new(self) -> set[str]:
        return set(self.aws.things()) - self._before

    def _instances(self) -> list[dict[str, Any]]:
        found = self._ec2.describe_instances()["Reservations"]
        every = [one for reservation in found for one in reservation["Instances"]]
        return [one for one in every if one["State"]["Name"] not in {"terminated", "shutting-down"}]

    def _wrong_machine(self, machine_id: str, state: str, *, barred: bool = False) -> list[str]:
        found = next((one for one in self._instances() if one["InstanceId"] == machine_id), None)
        if found is None:
            return [f"{machine_id} is gone"]
        texts = [] if found["State"]["Name"] == state else [f"{machine_id} is {found['State']['Name']}, not {state}"]
        places = {one["DeviceName"]: one["Ebs"]["VolumeId"] for one in found["BlockDeviceMappings"]}
        if barred:
            if "/dev/sda1" in places:
                texts.append(f"{machine_id} still has its root volume")
            wanted = [{"Name": "tag:farshore:fenced-from", "Values": [machine_id]}]
            for one in self._ec2.describe_volumes(Filters=wanted)["Volumes"]:
                places["/dev/sda1"] = one["VolumeId"]
        held = {place.removeprefix("/dev/"): self._begins(self.aws.volume(volume)) for place, volume in places.items()}
        return texts if held == self.held else [*texts, f"{machine_id} has the disks {held}"]

    def _wrong_points(self, *, leased: bool | None = None) -> list[str]:
        """Say what is wrong with the points: whole, of the disks' bytes; ``leased``: held by leases, or by none."""
        texts = []
        known = {one["SnapshotId"]: one for one in self._ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
        for disk, point in self._points.items():
            if point not in known or known[point]["State"] != "completed":
                texts.append(f"the point of {disk} is gone")
                continue
            image = self.aws.snapshot(point)
            if (found := self._begins(image)) != self._kept[disk]:
                texts.append(f"the point of {disk} holds {found!r}")
            image.unlink()
            if leased not in {None, any(key.startswith(tags.LEASE) for key in tags.tag_map(known[point]))}:
                texts.append(f"the point of {disk} is {'not ' if leased else ''}leased")
        return texts

    @staticmethod
    def _begins(image: Path) -> bytes:
        with image.open("rb") as disk:
            return disk.read(8)


_PHASES: Final[dict[str, Callable[[Recovery], None]]] = {
    "drill": Recovery.drill,
    "drill's end": Recovery.end,
    "failover": Recovery.failover,
    "fence": Recovery.fence,
    "lift": Recovery.lift,
    "sweep": Recovery.end,
    "adopt": Recovery.adopt,
    "failback": Recovery.failback,
    "retire": Recovery.retire,
    "prepare": Recovery.prepare,
    "launch": Recovery.launch,
    "admit": Recovery.admit,
    "probe": Recovery.probe,
    "command": Recovery.command,
}
_LOOKS: Final[dict[str, Callable[[Recovery], list[str]]]] = {
    "drill": Recovery.looks_rehearsed,
    "drill's end": Recovery.looks_swept,
    "failover": Recovery.looks_made_for_good,
    "fence": Recovery.looks_fenced,
    "lift": Recovery.looks_lifted,
    "sweep": Recovery.looks_swept,
    "adopt": Recovery.looks_adopted,
    "failback": Recovery.looks_back,
    "retire": Recovery.looks_retired,
    "prepare": Recovery.looks_prepared,
    "launch": Recovery.looks_made_for_good,
    "admit": Recovery.looks_admitted,
    "probe": Recovery.looks_probed,
    "command": Recovery.looks_run,
}


def _task(call: Callable[[], T]) -> T:
    """Do a task as the control plane does: what may pass is ordered again."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            return call()
        except (Retry, Reconnect):
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")
