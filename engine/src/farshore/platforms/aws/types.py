"""Which instance type a machine gets: of what the zone offers, of the site's families, the smallest that fits."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from farshore.errors import NotFound, Permanent
from farshore.platforms.aws.account import Account
from farshore.units import MIB, format_size

#: Families that are tried where the site's settings name none, per architecture, the cheapest first.
FAMILIES: Final = {"x86_64": ("t3", "m6i", "c6i", "r6i"), "aarch64": ("t4g", "m7g", "c7g", "r7g")}
#: EC2's names of architectures, by ours.
ARCHITECTURES: Final = {"x86_64": "x86_64", "aarch64": "arm64"}
#: EC2's names of boot modes, by ours.
BOOT_MODES: Final = {"bios": "legacy-bios", "uefi": "uefi"}
#: Volumes that most types can have: 28 places, one of them taken by an interface; what EC2 tells of a type goes first.
#: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/volume_limits.html
VOLUMES: Final = 27
#: The most types that one DescribeInstanceTypes takes by name.
_NAMES_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One type, as far as it matters here. ``boot_modes`` and ``architectures`` are EC2's names.

    ``volumes``: so many it can have, with one interface; further ones take places of volumes where ``shares_places``.
    """

    name: str
    cpus: int
    memory_bytes: int
    architectures: tuple[str, ...]
    boot_modes: tuple[str, ...]
    interfaces: int
    nitro: bool
    instance_store: bool
    volumes: int = VOLUMES
    shares_places: bool = True

    @property
    def family(self) -> str:
        """The part before the dot."""
        return self.name.partition(".")[0]


def parsed(raw: dict[str, Any]) -> InstanceType:
    """Return a type from what DescribeInstanceTypes says."""
    storage = raw.get("EbsInfo") or {}
    return InstanceType(
        name=raw["InstanceType"],
        cpus=int(raw["VCpuInfo"]["DefaultVCpus"]),
        memory_bytes=int(raw["MemoryInfo"]["SizeInMiB"]) * MIB,
        architectures=tuple(raw.get("ProcessorInfo", {}).get("SupportedArchitectures") or ()),
        boot_modes=tuple(raw.get("SupportedBootModes") or ()),
        interfaces=int(raw.get("NetworkInfo", {}).get("MaximumNetworkInterfaces", 1)),
        nitro=raw.get("Hypervisor") == "nitro" or bool(raw.get("BareMetal")),
        instance_store=bool(raw.get("InstanceStorageSupported")),
        volumes=int(storage.get("MaximumEbsAttachments") or VOLUMES),
        shares_places=storage.get("AttachmentLimitType") != "dedicated",
    )


def lacking(found: InstanceType, architecture: str, firmware: str, interfaces: int) -> str:
    """Return why a machine cannot run on this type, whatever its size; empty if it can."""
    if ARCHITECTURES.get(architecture, architecture) not in found.architectures:
        return f"its processors are {', '.join(found.architectures)}, the machine's {architecture}"
    if found.boot_modes and BOOT_MODES[firmware] not in found.boot_modes:
        return f"it boots by {', '.join(found.boot_modes)}, the machine by {BOOT_MODES[firmware]}"
    if interfaces > found.interfaces:
        return f"it has room for {found.interfaces} interfaces, the machine has {interfaces}"
    return ""


def smallest(
    offered: Iterable[InstanceType],
    families: Sequence[str],
    *,
    cpus: int,
    memory_bytes: int,
    architecture: str,
    firmware: str,
    interfaces: int,
) -> InstanceType | None:
    """Return the type with the fewest processors, then the least memory; of equal ones that of the earlier family."""
    fitting = [
        found
        for found in offered
        if found.family in families
        and found.cpus >= cpus
        and found.memory_bytes >= memory_bytes
        and not lacking(found, architecture, firmware, interfaces)
    ]
    return min(
        fitting,
        key=lambda found: (found.cpus, found.memory_bytes, families.index(found.family), found.name),
        default=None,
    )


class Types:
    """The types of a zone. What EC2 says of types does not change while a process lives, and is asked once."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._zone = account.settings.zone
        self._lock = threading.Lock()
        self._offered: frozenset[str] | None = None
        self._known: dict[str, InstanceType] = {}

    def offered(self) -> frozenset[str]:
        """Return the names of the types that the zone offers."""
        with self._lock:
            if self._offered is None:
                pages = self._account.pages(
                    "ec2",
                    "describe_instance_type_offerings",
                    LocationType="availability-zone",
                    Filters=[{"Name": "location", "Values": [self._zone]}],
                )
                self._offered = frozenset(
                    item["InstanceType"] for page in pages for item in page["InstanceTypeOfferings"]
                )
            return self._offered

    def known(self, names: Iterable[str]) -> dict[str, InstanceType]:
        """Return what EC2 says of these types; those that it does not know are left out."""
        wanted = set(names)
        with self._lock:
            missing = sorted(wanted - set(self._known))
            for at in range(0, len(missing), _NAMES_AT_ONCE):
                # A filter, not InstanceTypes: one name that EC2 does not know would fail the call for all.
                for page in self._account.pages(
                    "ec2",
                    "describe_instance_types",
                    Filters=[{"Name": "instance-type", "Values": missing[at : at + _NAMES_AT_ONCE]}],
                ):
                    self._known |= {found.name: found for found in map(parsed, page["InstanceTypes"])}
            return {name: self._known[name] for name in wanted if name in self._known}

    def choose(
        self,
        *,
        cpus: int,
        memory_bytes: int,
        architecture: str,
        firmware: str,
        interfaces: int = 1,
        wanted: str = "",
        before: str = "",
    ) -> InstanceType:
        """Return the type that a machine gets.

        Args:
            cpus: processors that it needs at least.
            memory_bytes: memory that it needs at least.
            architecture: ``x86_64`` or ``aarch64``.
            firmware: ``bios`` or ``uefi``.
            interfaces: so many it has.
            wanted: what the plan says; nothing else will do.
            before: what it had; taken if it still fits.

        Raises:
            NotFound: the zone does not offer ``wanted``.
            Permanent: ``wanted`` cannot run the machine, or no type fits.
        """
        said = self._account.settings
        families = (
            said.instance_families if "instance_families" in said.model_fields_set else FAMILIES.get(architecture, ())
        )
        if wanted:
            return self._wanted(wanted, architecture, firmware, interfaces)
        had = self.known([before]).get(before) if before and before in self.offered() else None
        if (
            had
            and had.cpus >= cpus
            and had.memory_bytes >= memory_bytes
            and not lacking(had, architecture, firmware, interfaces)
        ):
            return had
        names = [name for name in self.offered() if name.partition(".")[0] in families]
        found = smallest(
            self.known(names).values(),
            families,
            cpus=cpus,
            memory_bytes=memory_bytes,
            architecture=architecture,
            firmware=firmware,
            interfaces=interfaces,
        )
        if found is None:
            raise Permanent(
                f"no instance type of the families {', '.join(families) or 'none'} in {self._zone} has {cpus}"
                f" processors, {format_size(memory_bytes)} of memory and {interfaces} interfaces for a machine"
                f" of {architecture} that boots by {BOOT_MODES[firmware]}",
                code="no-instance-type",
                hint="Add a family to platform.instance_families of the site's nodes, or name a type in the plan with"
                " recovery.instance_type.",
                field="recovery.instance_type",
                zone=self._zone,
            )
        return found

    def _wanted(self, name: str, architecture: str, firmware: str, interfaces: int) -> InstanceType:
        found = self.known([name]).get(name) if name in self.offered() else None
        if found is None:
            raise NotFound(
                f"the zone {self._zone} does not offer the instance type {name!r}",
                code="instance-type-not-offered",
                hint="Name another one in the plan with recovery.instance_type, or leave that out to have one chosen.",
                field="recovery.instance_type",
                zone=self._zone,
            )
        if why := lacking(found, architecture, firmware, interfaces):
            raise Permanent(
                f"the instance type {name!r} cannot run this machine: {why}",
                code="instance-type-unfit",
                hint="Name another one in the plan with recovery.instance_type.",
                field="recovery.instance_type",
            )
        return found
