"""The two-tier application on the first site: its guests, their disks and the networks of both sites."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from farshore import durable
from farshore.errors import NotFound, Retry
from farshore.testing.lab.accelerator import Accelerator
from farshore.testing.lab.guest import Image, Role
from farshore.testing.lab.site import Site, libvirt_module

PREFIX: Final = "farshore-lab-"
MEMORY_MIB: Final = 256
BOOT_TIMEOUT_S: Final = 180.0
MARKER: Final = b"MARKER "


@dataclass(frozen=True, slots=True)
class Network:
    """An isolated libvirt network (no forwarding): name, bridge, first three numbers of its /24."""

    name: str
    bridge: str
    prefix: str

    @property
    def subnet(self) -> str:
        """Return the network in CIDR notation."""
        return f"{self.prefix}.0/24"

    @property
    def gateway(self) -> str:
        """Return the address of the bridge, which is the hypervisor's."""
        return f"{self.prefix}.1"

    def address(self, host: int) -> str:
        """Return the address with host part ``host``."""
        return f"{self.prefix}.{host}"


@dataclass(frozen=True, slots=True)
class Tier:
    """One guest of the application."""

    role: Role
    mac: str
    host: int

    @property
    def name(self) -> str:
        """Return the name of the domain."""
        return f"{PREFIX}{self.role}"


NETWORKS: Final[dict[str, tuple[Network, ...]]] = {
    "alpha": (Network("app", "fslab-app", "10.77.1"),),
    "beta": (Network("recovery", "fslab-recovery", "10.77.2"),),
}
"""Per site. The guests have their addresses on every one of them by DHCP, by MAC."""

TIERS: Final[tuple[Tier, ...]] = (Tier("db", "52:54:00:fa:00:0b", 11), Tier("web", "52:54:00:fa:00:0c", 12))
"""In the order of starting: the database before what asks it."""


def tier(role: str) -> Tier:
    """Return the guest with this role; :class:`NotFound` if there is none."""
    for one in TIERS:
        if one.role == role:
            return one
    raise NotFound(f"the laboratory has no guest with the role {role}", field="role")


def ensure_network(site: Site, network: Network) -> bool:
    """Define and start ``network`` on ``site`` unless that is done; True if something was done."""
    libvirt = libvirt_module()
    with site.session() as connection:
        try:
            found = connection.networkLookupByName(network.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
            found = connection.networkDefineXML(_network_xml(network))
            found.setAutostart(True)
        if found.isActive():
            return False
        found.create()
        return True


def _network_xml(network: Network) -> str:
    hosts = "".join(
        f"<host mac={quoteattr(one.mac)} name={quoteattr(one.name)} ip={quoteattr(network.address(one.host))}/>"
        for one in TIERS
    )
    return (
        f"<network><name>{network.name}</name><bridge name={quoteattr(network.bridge)} stp='off' delay='0'/>"
        f"<ip address={quoteattr(network.gateway)} netmask='255.255.255.0'><dhcp>"
        f"<range start={quoteattr(network.address(100))} end={quoteattr(network.address(199))}/>{hosts}"
        "</dhcp></ip></network>"
    )


class Guest:
    """One guest of the application on a site."""

    def __init__(self, site: Site, one: Tier) -> None:
        self.site = site
        self.tier = one
        self.name = one.name
        self.disks = {"vda": site.storage / f"{one.name}-vda.qcow2"}
        if one.role == "db":
            self.disks["vdb"] = site.storage / f"{one.name}-vdb.qcow2"
        self.console = site.guests / f"{one.name}.console.log"
        self.serial = site.guests / f"{one.name}.serial"
        # Written after the first start. A guest that was once started and is off now was switched off by somebody,
        # perhaps because another site runs it: never started again behind that one's back.
        self._started = site.guests / f"{one.name}.started"

    def domain(self, connection: Any) -> Any | None:
        """Return the ``libvirt.virDomain``, None while it is not defined."""
        libvirt = libvirt_module()
        try:
            return connection.lookupByName(self.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return None

    def ensure(self, image: Image, accelerator: Accelerator, progress: Callable[[str], None]) -> bool:
        """Create disks and domain and start it, whatever of that is missing; True if something was done.

        A guest that was started once and is off or gone is left alone.
        """
        with self.site.session() as connection:
            domain = self.domain(connection)
            if self._started.exists():
                if domain is None or not domain.isActive():
                    progress(f"{self.name} on {self.site.name} was switched off or removed, and is left so")
                return False
            if domain is None:
                progress(f"creating {self.name} on {self.site.name}")
                self._create_disks(image)
                domain = connection.defineXML(_domain_xml(self, self.site, accelerator))
            if not domain.isActive():
                progress(f"starting {self.name}")
                domain.create()
            durable.write(self._started, b"")
            return True

    def _create_disks(self, image: Image) -> None:
        """Copy the image's disks; a disk that is there under its name is whole."""
        sources = {"vda": image.system[self.tier.role], "vdb": image.data}
        for target, path in self.disks.items():
            if path.exists():
                continue
            temporary = path.with_name(f".{path.name}.tmp")
            shutil.copyfile(sources[target], temporary)
            temporary.rename(path)

    def start(self) -> None:
        """Switch on a guest that is off, on somebody's explicit order."""
        with self.site.session() as connection:
            domain = self.domain(connection)
            if domain is None:
                raise NotFound(f"the guest {self.name} does not exist on {self.site.name}")
            if not domain.isActive():
                domain.create()

    def state(self) -> str:
        """Return ``running``, ``off`` or ``missing``."""
        with self.site.session() as connection:
            domain = self.domain(connection)
            if domain is None:
                return "missing"
            return "running" if domain.isActive() else "off"

    def wait(self, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Return the marker line of the guest's present boot; :class:`Retry` (``guest-not-up``) if it does not come."""
        deadline = time.monotonic() + timeout_s
        while True:
            # libvirt empties the log at each start, so what is in it is of this boot.
            text = self.console.read_bytes() if self.console.exists() else b""
            _before, marker, rest = text.partition(MARKER)
            if marker and b"\n" in rest:
                return (marker + rest.split(b"\n", 1)[0]).decode(errors="replace").strip()
            if time.monotonic() > deadline or self.state() != "running":
                raise Retry(
                    f"the guest {self.name} ended, or showed no marker on its console within {timeout_s:.0f} s",
                    code="guest-not-up",
                    hint=f"Look at {self.console}",
                    console=text[-500:].decode(errors="replace"),
                )
            time.sleep(0.2)

    def describe(self, network: Network) -> dict[str, Any]:
        """Return the facts that a plan or a test needs."""
        return {
            "name": self.name,
            "role": self.tier.role,
            "site": self.site.name,
            "state": self.state(),
            "mac": self.tier.mac,
            "network": network.name,
            "address": network.address(self.tier.host),
            "url": f"http://{network.address(self.tier.host)}:8080",
            "disks": {target: str(path) for target, path in self.disks.items()},
            "console": str(self.console),
            "serial": str(self.serial),
        }


def _domain_xml(guest: Guest, site: Site, accelerator: Accelerator) -> str:
    # A stable identity: the same laboratory made again is the same machines.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"farshore-lab:{site.folder}:{guest.name}")
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
        f"<source file={quoteattr(os.fspath(path))}/><target dev={quoteattr(target)} bus='virtio'/></disk>"
        for target, path in guest.disks.items()
    )
    kind, cpu = ("kvm", "host-passthrough") if accelerator == "kvm" else ("qemu", "maximum")
    network = NETWORKS[site.name][0]
    return (
        f"<domain type='{kind}'><name>{guest.name}</name><uuid>{identity}</uuid>"
        f"<memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>"
        f"<features><acpi/></features><cpu mode='{cpu}'/><clock offset='utc'/>"
        "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}"
        f"<interface type='network'><mac address={quoteattr(guest.tier.mac)}/>"
        f"<source network={quoteattr(network.name)}/><model type='virtio'/></interface>"
        f"<serial type='unix'><source mode='bind' path={quoteattr(os.fspath(guest.serial))}/>"
        f"<log file={quoteattr(os.fspath(guest.console))} append='off'/></serial>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        "<video><model type='vga'/></video><memballoon model='none'/></devices></domain>"
    )


def bridges(site: Site) -> list[str]:
    """Return the names of the bridges in the site's network namespace, from the networks that libvirt runs."""
    names = []
    with site.session() as connection:
        for network in connection.listAllNetworks():
            element = ET.fromstring(network.XMLDesc(0)).find("bridge")  # noqa: S314  # libvirt's own text
            if element is not None and network.isActive():
                names.append(str(element.get("name")))
    return sorted(names)
