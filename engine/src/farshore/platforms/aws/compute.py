"""Machines and networks of an AWS account; see :class:`farshore.platforms.contract.Compute`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from farshore.errors import Conflict, NotFound, Permanent, Retry
from farshore.model.machine import Finding, Inventory, MachineFacts, PoolFacts, Power
from farshore.model.task import DetachResult, IsolationResult, MachineCreateParams, NetworkCreateParams
from farshore.platforms.aws import checks, helper, inventory, prices, quotas, sweeping, tags
from farshore.platforms.aws import fence as fencing
from farshore.platforms.aws.account import Account, wait_for
from farshore.platforms.aws.agent import Agent
from farshore.platforms.aws.guest_disks import GuestDisks
from farshore.platforms.aws.machines import Maker, ask, awaited, settled
from farshore.platforms.aws.networks import Networks
from farshore.platforms.aws.points import Points
from farshore.platforms.aws.types import Types
from farshore.platforms.contract import Caps, OpenDisk, Reach

CAPS: Final = Caps(fences_by="none")


class AwsCompute:
    """Instances of one region. Safe from several threads."""

    caps = CAPS

    def __init__(self, account: Account, types: Types, usage: Callable[[], PoolFacts]) -> None:
        self._account = account
        self._types = types
        self._usage = usage
        self._networks = Networks(account)
        self._maker = Maker(account, types, self._networks.place)
        self._guests = GuestDisks(account)
        self._agent = Agent(account)

    # --- what there is -------------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """Return the machines that the settings' filters let through, all subnets, and what is left of the quota."""
        settings = self._account.settings
        filters = [{"Name": name, "Values": list(values)} for name, values in settings.machines.items()]
        every = list(inventory.instances(self._account))
        # Those that we made belong to the site whatever the filters say: a failback begins with them.
        site = tags.site_of(settings.bucket, settings.prefix)
        chosen = {item["InstanceId"] for item in inventory.instances(self._account, filters)} if filters else None
        shown = [
            item
            for item in every
            if chosen is None or item["InstanceId"] in chosen or tags.tag_map(item).get(tags.SITE) == site
        ]
        quota, findings = inventory.quota(self._account, self._types, every)
        machines = inventory.machine_facts(self._account, self._types, shown)
        probe_helper, told = helper.findings(self._account)
        return Inventory(
            platform="aws",
            machines=tuple(sorted(machines, key=lambda one: one.name)),
            networks=tuple(inventory.network_facts(self._account)),
            pool=self._usage(),
            limits=quotas.limits(self._account, self._types),
            quota=quota,
            prices=prices.prices(settings.prices),
            drill_probes=helper.WITH_HELPER if probe_helper else helper.ALONE,
            probe_helper=probe_helper,
            findings=(*findings, *told, *inventory.impaired(self._account)),
        )

    def facts(self, machine_id: str) -> MachineFacts:
        """Return one machine."""
        raw = inventory.instance(self._account, machine_id)
        return inventory.machine_facts(self._account, self._types, [raw])[0]

    def check(self) -> list[Finding]:
        """Prove that the account can be used, and name each permission that is missing."""
        return checks.run(self._account, self._types)

    # --- making --------------------------------------------------------------------------------------------------

    def create(self, spec: MachineCreateParams) -> str:
        """Make a machine on volumes made of points, powered off; see :mod:`farshore.platforms.aws.machines`."""
        return self._maker.create(spec)

    def isolated_network(self, spec: NetworkCreateParams) -> None:
        """Make a VPC without a way out; see :mod:`farshore.platforms.aws.networks`."""
        self._networks.create_isolated(spec)

    def isolation(self, tag: str, networks: Sequence[str], *, canaries: bool) -> IsolationResult:  # noqa: ARG002
        """Read back that networks of ``tag`` lead nowhere; there are no stand-ins here to try it with."""
        return self._networks.isolation(tag, networks)

    def open_disks(self, machine_id: str) -> AbstractContextManager[tuple[OpenDisk, ...]]:
        """Open what a machine's volumes are made of, with a layer over it; see :mod:`~.guest_disks`."""
        return self._guests.opened(machine_id)

    # --- power ---------------------------------------------------------------------------------------------------

    def start(self, machine_id: str) -> None:
        """Power on, and wait until EC2 says that it runs; whether the guest does is for probes to say.

        Raises:
            Fenced: the machine is fenced.
            Conflict: it is one of ours that is not made to the end.
            Retry: the zone has no room, or it did not start; the message has EC2's reason.
        """
        raw = inventory.instance(self._account, machine_id)
        fencing.refuse(raw)
        known = tags.tag_map(raw)
        if tags.TAG in known and (inventory.MADE not in known or inventory.SWAP in known):
            raise Conflict(
                f"machine {known.get(inventory.NAME, machine_id)} was not made to the end",
                code="machine-unfinished",
                hint="Run the step that makes it, or prepares its guest, again.",
                machine_id=machine_id,
            )
        state = raw["State"]["Name"]
        if state == "stopping":
            state = awaited(
                self._account, lambda: settled(self._account, machine_id, {"stopped"}), f"machine {machine_id}"
            )
        if state == "stopped":
            ask(self._account, "start_instances", InstanceIds=[machine_id])
        awaited(self._account, lambda: self._running(machine_id), f"machine {machine_id}")

    def _running(self, machine_id: str) -> str | None:
        raw = inventory.instance(self._account, machine_id)
        state = raw["State"]["Name"]
        if state in {"stopping", "stopped"}:
            reason = raw.get("StateReason") or {}
            raise Retry(
                f"EC2 did not keep {machine_id} running: {reason.get('Message') or reason.get('Code') or state}",
                code="start-failed",
                hint="A volume's KMS key that cannot be used ends a machine at once; so does a quota.",
                machine_id=machine_id,
            )
        return state if state == "running" else None

    def booted(self, machine_id: str) -> bool:
        """Say whether both of EC2's status checks, that of the host and that of the guest, are passed."""
        reply = self._account.patiently("ec2", "describe_instance_status", InstanceIds=[machine_id])
        return any(
            item["SystemStatus"]["Status"] == item["InstanceStatus"]["Status"] == "ok"
            for item in reply["InstanceStatuses"]
        )

    def stop(self, machine_id: str, timeout_s: float) -> bool:
        """Press the power button and wait. EC2 itself cuts the power of guests that do not go down in some minutes."""
        if self._off(machine_id) is None:
            ask(self._account, "stop_instances", InstanceIds=[machine_id])

        def late() -> Retry:
            return Retry("", code="not-off")

        try:
            wait_for(lambda: self._off(machine_id), self._account.settings.poll_s, timeout_s, late)
        except Retry as error:
            if error.code != "not-off":
                raise
            return False
        fencing.bar(self._account, machine_id)
        return True

    def power_off(self, machine_id: str) -> None:
        """Cut the power, wait until it is off, and bar it if it is fenced."""
        if self._off(machine_id) is None:
            ask(self._account, "stop_instances", InstanceIds=[machine_id], Force=True, SkipOsShutdown=True)
            awaited(self._account, lambda: self._off(machine_id), f"machine {machine_id}")
        fencing.bar(self._account, machine_id)

    def _off(self, machine_id: str) -> str | None:
        return settled(self._account, machine_id, {"stopped"})

    def power(self, machine_id: str) -> Power:
        """Return the state, read from EC2 now."""
        return inventory.power(inventory.instance(self._account, machine_id))

    def fence(self, machine_id: str, epoch: int) -> bool:
        """Keep the machine from starting; see :mod:`farshore.platforms.aws.fence`."""
        return fencing.fence(self._account, machine_id, epoch)

    def unfence(self, machine_id: str) -> None:
        """Lift the fence."""
        fencing.lift(self._account, machine_id)

    def detach(self, machine_id: str) -> DetachResult:
        """Say that volumes are whole copies; what served to make the machines of the run goes, and its leases."""
        tag = tags.tag_map(inventory.instance(self._account, machine_id)).get(tags.TAG)
        if tag is not None:
            sweeping.drop_helpers(self._account, tag)
            Points(self._account).release(tag)
            ask(
                self._account,
                "create_tags",
                Resources=[machine_id],
                Tags=tags.tag_list({inventory.SETTLED: "yes"}),
            )
        return DetachResult(machine_id=machine_id, state="done", detail="its volumes need no checkpoint")

    # --- looking at a machine ------------------------------------------------------------------------------------

    def addresses(self, machine_id: str) -> list[str]:
        """Return the addresses of its interfaces, as EC2 gave them."""
        return [address for nic in self.facts(machine_id).nics for address in nic.addresses]

    def console(self, machine_id: str, tail_bytes: int = 16384) -> str:
        """Return the end of what came out of the serial port; EC2 keeps 64 KiB."""
        inventory.instance(self._account, machine_id)
        try:
            reply = self._account.patiently("ec2", "get_console_output", InstanceId=machine_id, Latest=True)
        except Permanent as error:
            if error.evidence.get("aws_code") != "UnsupportedOperation":
                raise
            # Types before Nitro have what was there some minutes after the last start.
            reply = self._account.patiently("ec2", "get_console_output", InstanceId=machine_id)
        return str(reply.get("Output") or "")[-tail_bytes:]

    def screen(self, machine_id: str) -> bytes:
        """Return what the machine shows on its screen, as a JPEG: EC2 has no other."""
        if self.power(machine_id) != "on":
            raise NotFound(f"machine {machine_id} is off and shows nothing", code="no-screen", machine_id=machine_id)
        reply = self._account.patiently("ec2", "get_console_screenshot", InstanceId=machine_id, WakeUp=True)
        return base64.b64decode(reply["ImageData"])

    def agent(self, machine_id: str, request: Mapping[str, Any], timeout_s: float) -> Any:
        """Ask the agent of Systems Manager, in the words of the QEMU guest agent; see :mod:`~.agent`."""
        if self._drilled(machine_id) is not None:
            raise Permanent(
                "no agent is to be asked in a drill: its network has no way to Systems Manager",
                code="no-agent",
                hint="Use probes of type console, or of tcp and http with platform.probe_helper.",
                asked=request.get("execute"),
            )
        return self._agent.ask(machine_id, request, timeout_s)

    def reach(self, machine_id: str) -> Reach | None:
        """Return who speaks to ports of a machine in an isolated network; None: nodes that have a way there do."""
        tag = self._drilled(machine_id)
        if tag is None or not self._account.settings.probe_helper:
            return None
        return helper.HelperReach(self._account, tag)

    def _drilled(self, machine_id: str) -> str | None:
        """Return the tag of the run that a machine is rehearsed in; None: it is not in an isolated network."""
        raw = inventory.instance(self._account, machine_id)
        subnets = sorted({str(one["SubnetId"]) for one in raw.get("NetworkInterfaces") or ()})
        tag = tags.tag_map(raw).get(tags.TAG)
        if tag is None or not subnets:
            return None
        reply = self._account.patiently("ec2", "describe_subnets", SubnetIds=subnets)
        return tag if any(inventory.NETWORK in tags.tag_map(one) for one in reply["Subnets"]) else None

    # --- sweeping ------------------------------------------------------------------------------------------------

    def sweep(self, tag: str) -> tuple[list[str], list[str]]:
        """Remove everything that carries ``tag``, then look again."""
        held = self._guests.held()
        found = sweeping.sweep(self._account, tag)
        for machine_id in held:
            try:
                inventory.instance(self._account, machine_id)
            except NotFound:
                self._guests.close(machine_id)
        return found
