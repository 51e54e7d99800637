"""Machines and networks of a hypervisor: recovered ones that are made, started, probed and swept, and the fence."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Conflict, Fenced, Invalid, NotFound, Retry
from farshore.model.machine import Finding, Inventory, MachineFacts, Power
from farshore.model.task import DetachResult, IsolationResult, MachineCreateParams, NetworkCreateParams, PacketCount
from farshore.platforms.contract import Caps, OpenDisk
from farshore.platforms.kvm import (
    checks,
    detaching,
    domain,
    firewall,
    guest_disks,
    images,
    isolation,
    looking,
    machines,
    traces,
)
from farshore.platforms.kvm.accelerator import Accelerator
from farshore.platforms.kvm.connection import Hypervisor, asking, libvirt
from farshore.platforms.kvm.networks import Networks, bridge_of
from farshore.platforms.kvm.retiring import give_up_name
from farshore.platforms.kvm.target import KvmTarget
from farshore.platforms.nbd import files
from farshore.platforms.nbd.launcher import Launcher

CAPS: Final = Caps(fences_by="lock")
#: Namespace of the ids of machines that we make: the same run and name is the same machine.
_MACHINES: Final = uuid.UUID("5b0ad2b8-3a54-5c0e-9a44-64c7c2f3a6d1")
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_POLL_S: Final = 0.1
_LOG: Final = ".console.log"
#: Names of the networks that were made are those of such files in the folder of their tag.
_NETWORK: Final = ".network"
#: A guest that is still booting misses the power button: it is pressed again.
_PRESS_AGAIN_S: Final = 5.0
#: How long libvirt may take to notice that a machine has powered itself off: QEMU writes out what it holds meanwhile.
_NOTICE_S: Final = 2.0


class KvmCompute:
    """Machines and networks of one hypervisor; see :class:`farshore.platforms.contract.Compute`."""

    caps = CAPS

    def __init__(
        self,
        hypervisor: Hypervisor,
        target: KvmTarget,
        scratch: Path,
        accelerator: Accelerator,
        launcher: Launcher | None = None,
        *,
        alone: Callable[[Sequence[str]], contextlib.AbstractContextManager[None]] | None = None,
        detach_rate: int = detaching.RATE,
    ) -> None:
        self._hypervisor = hypervisor
        self._launcher = launcher or Launcher(scratch / "daemons")
        self._target = target
        self._scratch = scratch
        self._accelerator = accelerator
        self._networks = Networks(hypervisor)
        #: Keeps others from taking points of machines.
        self._alone = alone or (lambda _machine_ids: contextlib.nullcontext())
        self._detach_rate = detach_rate

    # --- what there is -------------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """Return all machines and networks."""
        found: list[MachineFacts] = []
        for handle in self._hypervisor.domains():
            with contextlib.suppress(NotFound):  # removed while we looked
                found.append(self._facts(handle))
        return Inventory(
            platform="kvm",
            machines=tuple(sorted(found, key=lambda one: one.name)),
            networks=tuple(self._networks.facts()),
            pool=self._target.usage(),
            accelerator=self._accelerator,
            one_address_space=True,
            findings=tuple(self._target.findings()),
        )

    def facts(self, machine_id: str) -> MachineFacts:
        """Return one machine."""
        return self._facts(self._hypervisor.domain(machine_id))

    def _facts(self, handle: Any) -> MachineFacts:
        standing = detaching.standing(machines.read(handle), self._target.layers.recovered)
        return machines.facts(handle).model_copy(update={"on_points": bool(standing)})

    def check(self) -> list[Finding]:
        """Prove that what is needed works here."""
        return [
            *checks.hypervisor(self._hypervisor),
            *checks.tools(),
            *checks.folder(self._target.layers.pool, "pool"),
            *checks.folder(self._scratch, "scratch"),
            checks.accelerator(self._accelerator),
            *self._target.findings(),
        ]

    # --- making --------------------------------------------------------------------------------------------------

    def create(self, spec: MachineCreateParams) -> str:
        """Make a machine on writable layers over sealed points, powered off.

        Raises:
            NotFound: a point or network does not exist.
            Conflict: the name is taken by a machine that is not this run's, or an address by another one.
            NoSpace: the pool is full.
        """
        folder = self._folder(spec.tag)
        _check_name(spec.name)
        existing = next((one for one in self._hypervisor.domains() if one.name() == spec.name), None)
        if existing is not None and existing.UUIDString() == spec.replaces:
            give_up_name(existing, spec.epoch)
            existing = None
        if existing is not None:
            owner = machines.defined(existing).owner
            if owner is None or owner.tag != spec.tag:
                raise Conflict(
                    f"a machine called {spec.name!r} exists already",
                    code="machine-exists",
                    hint="Remove or rename it.",
                    machine_id=existing.UUIDString(),
                )
            return str(existing.UUIDString())
        points = {disk.disk_id: self._target.path(disk.point) for disk in spec.disks}
        for nic in spec.nics:
            self._networks.need(nic.network)
        durable.make_dir(folder, 0o711)
        disks: dict[str, Path] = {}
        for disk in spec.disks:
            _check_name(disk.disk_id)
            disks[disk.disk_id] = folder / f"{spec.name}-{disk.disk_id}.qcow2"
            if not disks[disk.disk_id].exists():
                images.create(disks[disk.disk_id], disk.size_bytes, points[disk.disk_id])
        for nic in spec.nics:
            if nic.address and self._networks.missing_host(nic.network, nic.mac, nic.address):
                self._give_address(folder, nic.network, nic.mac, nic.address)
        machine_id = str(uuid.uuid5(_MACHINES, f"{spec.tag}/{spec.name}"))
        xml = domain.build(
            spec,
            machine_id=machine_id,
            disks=disks,
            console_log=folder / f"{spec.name}{_LOG}",
            accelerator=self._accelerator,
        )
        with asking(f"making machine {spec.name}"):
            self._hypervisor.connection().defineXML(xml)
        return machine_id

    def _folder(self, tag: str) -> Path:
        if not _TAG.fullmatch(tag) or ".." in tag:
            raise Invalid(f"{tag!r} is no tag", field="tag")
        return self._target.layers.recovered / tag

    def _give_address(self, folder: Path, network: str, mac: str, address: str) -> None:
        # The record first: an entry that nobody knows would stay for ever.
        entries = [*_given(folder), [network, mac, address]]
        durable.write_json(folder / "addresses.json", entries)
        self._networks.add_host(network, mac, address)

    def isolated_network(self, spec: NetworkCreateParams) -> None:
        """Make a network without a way out; see :mod:`farshore.platforms.kvm.firewall`."""
        folder = self._folder(spec.tag)
        _check_name(spec.name)
        # The record first, so that a sweep knows all that there may be.
        durable.make_dir(folder, 0o711)
        durable.write(folder / f"{spec.name}{_NETWORK}", b"")
        self._networks.create_isolated(spec)

    def isolation(self, tag: str, networks: Sequence[str], *, canaries: bool) -> IsolationResult:
        """Prove that networks of ``tag`` lead nowhere; see :mod:`farshore.platforms.kvm.isolation`."""
        tried, counts = [], []
        for name in networks:
            if name not in self._networks.of(tag):
                raise NotFound(f"network {name!r} is not one of {tag}", code="network-not-found", network=name)
            bridge = bridge_of(name)
            if canaries:
                gateway, subnet = self._networks.gateway(name)
                tried += isolation.prove(name, bridge, gateway, subnet, list(self._networks.hosts(name).values()))
            outside, stopped, admitted = firewall.count(bridge, tag)
            counts.append(PacketCount(network=name, outside=outside, stopped=stopped, admitted=admitted))
        return isolation.verdict(tried, counts)

    def open_disks(self, machine_id: str) -> contextlib.AbstractContextManager[tuple[OpenDisk, ...]]:
        """Open a recovered machine's own layers; see :mod:`farshore.platforms.kvm.guest_disks`."""
        handle = self._hypervisor.domain(machine_id)
        found = machines.defined(handle)
        if machines.power(handle) != "off":
            raise Conflict(f"machine {found.name} is not off", code="machine-on", machine_id=machine_id)
        folder = self._target.layers.recovered
        return guest_disks.opened(self._launcher, self._guests, machine_id, found.disks, folder)

    @property
    def _guests(self) -> Path:
        return self._scratch / "guests"

    # --- power ---------------------------------------------------------------------------------------------------

    def start(self, machine_id: str) -> None:
        """Power on.

        Raises:
            Fenced: the machine is fenced (``machine-fenced``).
            Conflict: one of its disks is in use by another process (``image-in-use``).
        """
        handle = self._hypervisor.domain(machine_id)
        found = machines.defined(handle)
        if found.fence:
            raise Fenced(
                f"machine {found.name} is fenced since epoch {found.fence.epoch} and must not start",
                code="machine-fenced",
                hint="The machine runs at another site. Fail back, or lift the fence if you are sure that it does not.",
                machine_id=machine_id,
                epoch=found.fence.epoch,
            )
        if machines.power(handle) != "off":
            return
        files.close(self._launcher, self._guests, machine_id)
        try:
            handle.create()
        except libvirt.libvirtError as error:
            if 'Failed to get "' in str(error):
                raise Conflict(
                    f"machine {found.name} cannot start, a disk is in use: {error}", code="image-in-use"
                ) from error
            with asking(f"starting machine {found.name}"):
                raise

    def stop(self, machine_id: str, timeout_s: float) -> bool:
        """Press the power button and wait.

        libvirt's one thread for events is late where it waits for something of another machine (``backup.end``): a
        guest that has powered itself off is shown as shutting down for half a minute and more. Ending what is left of
        it, by SIGTERM alone, is a call that libvirt answers in a thread of its own.
        """
        handle = self._hypervisor.domain(machine_id)
        deadline = time.monotonic() + timeout_s
        press = time.monotonic()
        down: float | None = None
        while True:
            if _off(handle):
                return True
            now = time.monotonic()
            if now >= deadline:
                return False
            down = (down or now) if machines.is_shut_down(handle) else None
            if down is not None and now - down >= _NOTICE_S:
                with contextlib.suppress(libvirt.libvirtError):  # it is noticed in between
                    handle.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
                down = None
            if now >= press:
                # It may go off in between, or be so early that it has no button yet; the loop sees what comes of it.
                with contextlib.suppress(libvirt.libvirtError):
                    handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
                press = now + _PRESS_AGAIN_S
            time.sleep(_POLL_S)

    def power_off(self, machine_id: str) -> None:
        """Cut the power."""
        handle = self._hypervisor.domain(machine_id)
        if _off(handle):
            return
        try:
            handle.destroy()
        except libvirt.libvirtError:
            if not _off(handle):
                with asking(f"powering off machine {machine_id}"):
                    raise

    def power(self, machine_id: str) -> Power:
        """Return the state as libvirt has it now."""
        return machines.power(self._hypervisor.domain(machine_id))

    # --- the fence -----------------------------------------------------------------------------------------------

    def fence(self, machine_id: str, epoch: int) -> bool:
        """Mark the machine and make libvirt itself refuse to start it; one that runs goes on until it is powered off.

        The epoch of a fence never falls. True if all of it was read back.
        """
        handle = self._hypervisor.domain(machine_id)
        if not handle.isPersistent():
            raise Conflict(f"machine {machine_id} is transient and cannot be fenced", code="machine-transient")
        before = machines.defined(handle).fence
        with asking(f"fencing machine {machine_id}"):
            autostart = before.autostart if before else bool(handle.autostart())
            epoch = max(epoch, before.epoch if before else 0)
            if before is None or before.epoch < epoch or not before.barred:
                xml = domain.fenced(machines.defined_xml(handle), epoch, autostart=autostart)
                self._hypervisor.connection().defineXML(xml)
            handle.setAutostart(0)
            after = machines.defined(handle).fence
            # A saved state would be resumed from its own copy of the definition, past the fence.
            saved = bool(handle.hasManagedSaveImage(0))
            return bool(after and after.barred and after.epoch == epoch and not handle.autostart() and not saved)

    def unfence(self, machine_id: str) -> None:
        """Lift the fence and give back autostart."""
        handle = self._hypervisor.domain(machine_id)
        before = machines.defined(handle).fence
        if before is None:
            return
        with asking(f"lifting the fence of machine {machine_id}"):
            # First the note of what autostart was is used, then it goes.
            handle.setAutostart(int(before.autostart))
            self._hypervisor.connection().defineXML(domain.unfenced(machines.defined_xml(handle)))

    # --- leaving the chain -------------------------------------------------------------------------------------------

    def detach(self, machine_id: str) -> DetachResult:
        """Copy what a machine's disks have only from points; the last one of a tag gives back the leases.

        See :mod:`farshore.platforms.kvm.detaching`.
        """
        recovered = self._target.layers.recovered
        with self._alone([machine_id]):
            handle = self._hypervisor.domain(machine_id)
            result = detaching.advance(handle, recovered, self._detach_rate)
        owner = machines.defined(handle).owner
        if result.state == "done" and owner is not None and not detaching.on_points(recovered / owner.tag):
            self._target.release(owner.tag)
        return result

    # --- looking at a machine ------------------------------------------------------------------------------------

    def addresses(self, machine_id: str) -> list[str]:
        """Return addresses from DHCP, from the guest agent, and those that DHCP would give."""
        handle = self._hypervisor.domain(machine_id)
        found: list[str] = []
        for source in (
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
        ):
            with contextlib.suppress(libvirt.libvirtError):  # off, or no agent
                for interface in handle.interfaceAddresses(source, 0).values():
                    found += [str(address["addr"]) for address in interface.get("addrs") or ()]
        for nic in machines.read(handle).nics:
            given = self._networks.hosts(nic.network).get(nic.mac)
            found += [given] if given else []
        return [address for address in dict.fromkeys(found) if _useful(address)]

    def console(self, machine_id: str, tail_bytes: int = 16384) -> str:
        """Return the end of the text of the first serial port; empty where it is not kept."""
        path = machines.read(self._hypervisor.domain(machine_id)).console_log
        try:
            with Path(path).open("rb") as log:
                log.seek(0, 2)
                log.seek(max(0, log.tell() - tail_bytes))
                return log.read(tail_bytes).decode(errors="replace")
        except (FileNotFoundError, IsADirectoryError):
            return ""

    def screen(self, machine_id: str) -> bytes:
        """Return what the machine shows on its screen."""
        return looking.screen(self._hypervisor.connection(), self._hypervisor.domain(machine_id))

    def agent(self, machine_id: str, request: Mapping[str, Any], timeout_s: float) -> Any:
        """Ask the guest's agent."""
        return looking.ask_agent(self._hypervisor.domain(machine_id), request, timeout_s)

    # --- sweeping ------------------------------------------------------------------------------------------------

    def sweep(self, tag: str) -> tuple[list[str], list[str]]:
        """Remove everything that carries ``tag``, then look again."""
        folder = self._folder(tag)
        removed = []
        machine_names = {path.name.removesuffix(_LOG) for path in folder.glob(f"*{_LOG}")}
        network_names = {path.name.removesuffix(_NETWORK) for path in folder.glob(f"*{_NETWORK}")}
        network_names |= set(self._networks.of(tag))
        for handle in self._tagged(tag):
            machine_names.add(handle.name())
            removed.append(f"machine {handle.name()}")
            self._remove(handle)
        for network, mac, address in _given(folder):
            self._networks.remove_host(network, mac, address)
            removed.append(f"address {address} of {mac} in network {network}")
        for name in self._networks.of(tag):
            self._networks.remove(name)
            removed.append(f"network {name}")
        removed += [f"rule {rule}" for rule in firewall.open_again(tag)]
        for name in network_names:
            for port in isolation.ports(bridge_of(name)).values():
                isolation.unplug(port)
        traces.tidy(network_names)
        left = traces.left(machine_names, network_names, folder)
        if left:
            return removed, [*left, *self._remaining(tag)]
        if folder.is_dir():
            removed += [f"file {path.name}" for path in sorted(folder.iterdir())]
            shutil.rmtree(folder)
            durable.fsync_dir(folder.parent)
        return removed, self._remaining(tag)

    def forget(self, handle: Any) -> None:
        """Undefine an old primary; with the last one of a tag of ours all that carries the tag goes."""
        owner = machines.defined(handle).owner
        machine_id = handle.UUIDString()
        if owner is not None and [one.UUIDString() for one in self._tagged(owner.tag)] == [machine_id]:
            _removed, left = self.sweep(owner.tag)
            self._target.release(owner.tag)
            if left:
                raise Retry(f"of {owner.tag} is left: {', '.join(left)}", code="leftovers", machine_id=machine_id)
        else:
            self._remove(handle)

    def _remaining(self, tag: str) -> list[str]:
        folder = self._folder(tag)
        return [
            *(f"machine {handle.name()}" for handle in self._tagged(tag)),
            *(f"network {name}" for name in self._networks.of(tag)),
            *(f"rule {rule}" for rule in firewall.present(tag)),
            *(f"file {path}" for path in (folder.rglob("*") if folder.exists() else ())),
        ]

    def _tagged(self, tag: str) -> list[Any]:
        found = []
        for handle in self._hypervisor.domains():
            with contextlib.suppress(NotFound):
                owner = machines.defined(handle).owner
                if owner and owner.tag == tag:
                    found.append(handle)
        return found

    def _remove(self, handle: Any) -> None:
        files.close(self._launcher, self._guests, handle.UUIDString())
        self.power_off(handle.UUIDString())
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with asking(f"removing machine {handle.name()}"):
            handle.undefineFlags(flags)


def _off(handle: Any) -> bool:
    try:
        return machines.power(handle) == "off"
    except NotFound:  # a transient one is gone when it is off
        return True


def _check_name(name: str) -> None:
    if not _TAG.fullmatch(name) or ".." in name:
        raise Invalid(f"{name!r} cannot be a name here", field="name", hint="Use letters, digits, dots and dashes.")


def _given(folder: Path) -> list[list[str]]:
    try:
        found: list[list[str]] = json.loads((folder / "addresses.json").read_bytes())
    except FileNotFoundError:
        return []
    return found


def _useful(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local)
