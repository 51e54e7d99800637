"""Checks of a Windows guest: is its system volume whole, and will it find its disk where it is going to run?"""

from __future__ import annotations

import struct
from typing import Final

from farshore.errors import Permanent
from farshore.recovery.guest import drivers, hives, writing
from farshore.recovery.guest.broken import BROKEN
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.hives import Hive, Setting
from farshore.recovery.guest.trees import Tree, open_volume
from farshore.recovery.guest.volumes import Layout, Volume

CONFIG: Final = "/Windows/System32/config"
SYSTEM: Final = f"{CONFIG}/SYSTEM"
_SOFTWARE: Final = f"{CONFIG}/SOFTWARE"
_HIVE_BYTES: Final = 512 << 20
_VOLUME_RECORD: Final = 3  # $Volume
_VOLUME_INFORMATION: Final = 0x70
_DIRTY: Final = 1
#: Start values of services: at boot; by hand.
_BOOT: Final = 0
_ON_DEMAND: Final = 3
_BASE: Final = ("disk", "volmgr", "partmgr", "ntfs")
_USUAL_BOOT_EXECUTE: Final = "autocheck autochk *"
_PENDING: Final = (
    ("Microsoft\\Windows\\CurrentVersion\\Component Based Servicing\\RebootPending", "an update of Windows"),
    ("Microsoft\\Windows\\CurrentVersion\\Component Based Servicing\\RebootInProgress", "an update that has begun"),
    ("Microsoft\\Windows\\CurrentVersion\\WindowsUpdate\\Auto Update\\RebootRequired", "Windows Update"),
)


def find_root(layout: Layout) -> Tree | None:
    """Return the files of the Windows on these disks, None if there is none."""
    for volume in layout.volumes:
        system = open_volume(volume) if volume.content == "ntfs" else None
        if system is not None:
            tree = Tree(volume, system)
            if tree.is_dir("/Windows/System32"):
                return tree
    return None


def control_set(system: Hive) -> str:
    """Return the name of the control set that the next start takes."""
    number = system.number("Select", "Default") or system.number("Select", "Current") or 1
    return f"ControlSet{number:03d}"


def check(guest: Guest, tree: Tree) -> None:
    """Look at everything."""
    guest.system = "Windows"
    for volume in guest.layout.volumes:
        _dirty(guest, volume, at_start=volume is tree.volume)
    _sleeping(guest, tree)
    system = _hive(guest, tree, SYSTEM)
    software = _hive(guest, tree, _SOFTWARE)
    _boot(guest, tree)
    if software is not None:
        current = "Microsoft\\Windows NT\\CurrentVersion"
        name = str(software.value(current, "ProductName") or "Windows")
        build = str(software.value(current, "CurrentBuild") or "")
        guest.system = f"{name} ({build})" if build else name
        for key, what in _PENDING:
            if software.has(key):
                guest.find(
                    "restart-pending",
                    "warning",
                    f"{what} waits for a restart: the first start takes longer, and may undo it",
                    "Restart the machine at the source, and replicate again.",
                )
    if system is not None:
        chosen = control_set(system)
        if not system.has(chosen):
            guest.find("control-set-missing", "error", f"the registry has no {chosen}, which the next start takes", "")
            return
        _manager(guest, system, chosen)
        _drivers(guest, tree, system, chosen)


def _hive(guest: Guest, tree: Tree, path: str) -> Hive | None:
    hive = Hive.load(tree.read(path, _HIVE_BYTES))
    if hive is None:
        guest.find(
            "hive-broken",
            "error",
            f"{path} is missing or does not load",
            "Choose another checkpoint; take points at level machine or higher.",
        )
    return hive


def _dirty(guest: Guest, volume: Volume, *, at_start: bool) -> None:
    system = open_volume(volume) if volume.content == "ntfs" else None
    if system is None:
        return
    try:
        record = system.ntfs.mft.get(_VOLUME_RECORD)  # type: ignore[attr-defined]
        raw = next(iter(record.attributes[_VOLUME_INFORMATION])).data()
        [flags] = struct.unpack_from("<H", raw, 10)
    except BROKEN:
        guest.find("ntfs-unreadable", "warning", f"volume {volume.name}: its record of itself is not readable")
        return
    if flags & _DIRTY:
        guest.find(
            "ntfs-dirty",
            "warning" if at_start else "info",
            f"volume {volume.name} was not closed: Windows checks it at its first start, which takes a while",
            "Take application-consistent checkpoints, or allow the first probe more time.",
            volume.name,
        )


def sleeps(tree: Tree) -> bool:
    """Say whether a Windows hibernates: then its volumes belong to what it would wake to, and nothing writes them."""
    head = tree.find("/hiberfil.sys")
    try:
        return head is not None and head.system.open(head.node).read(4).upper() == b"HIBR"
    except BROKEN:
        return False


def _sleeping(guest: Guest, tree: Tree) -> None:
    if sleeps(tree):
        guest.find(
            "hibernated",
            "error",
            "the machine sleeps (hibernation or fast start): it would wake on hardware that is not there",
            "At the source: `powercfg /h off`, then shut down and replicate again.",
        )


def _boot(guest: Guest, tree: Tree) -> None:
    """The boot configuration: on the system volume, or a partition of its own."""
    for volume in guest.layout.volumes:
        system = open_volume(volume) if volume.content in {"ntfs", "fat"} else None
        files = Tree(volume, system) if system is not None else tree
        for path in ("/Boot/BCD", "/EFI/Microsoft/Boot/BCD"):
            if system is None or not files.exists(path):
                continue
            hive = Hive.load(files.read(path, _HIVE_BYTES))
            if hive is None or not hive.keys("Objects"):
                guest.find("boot-configuration-broken", "error", f"{path} on {volume.name} does not load", "")
            if guest.params.firmware == "uefi" and not files.exists("/EFI/BOOT/BOOTX64.EFI"):
                guest.find("uefi-fallback-missing", "warning", f"volume {volume.name} has no /EFI/BOOT/BOOTX64.EFI", "")
            return
    guest.find("boot-configuration-missing", "error", "no boot configuration (BCD) was found", "Replicate all disks.")


def _manager(guest: Guest, system: Hive, chosen: str) -> None:
    path = f"{chosen}\\Control\\Session Manager"
    if system.texts(path, "PendingFileRenameOperations"):
        guest.find(
            "rename-pending",
            "warning",
            "files wait to be renamed at the next start: an installation has not ended",
            "Restart the machine at the source, and replicate again.",
        )
    unusual = [item for item in system.texts(path, "BootExecute") if item != _USUAL_BOOT_EXECUTE]
    if unusual:
        guest.find(
            "boot-execute",
            "info" if all("autochk" in item for item in unusual) else "warning",
            f"runs before anything else at the next start: {', '.join(unusual)[:300]}",
            "",
        )


def _drivers(guest: Guest, tree: Tree, system: Hive, chosen: str) -> None:
    services = f"{chosen}\\Services"
    for name in _BASE:
        if (start := system.number(f"{services}\\{name}", "Start")) != _BOOT:
            guest.find("driver-not-at-boot", "error", f"driver {name} does not start at boot (Start={start})", "")
    bus = guest.bus()
    wanted = drivers.WINDOWS_DISK.get(bus, ())
    present = [name for name in wanted if _file(tree, name) and system.has(f"{services}\\{name}")]
    ready = [name for name in present if system.number(f"{services}\\{name}", "Start") == _BOOT]
    lying = [name for name in wanted if _file(tree, name)]
    if wanted and not ready:
        fixed = bool(lying) and guest.params.policy.fix and _start_at_boot(guest, tree, chosen, lying[0])
        where = "is there, but does not start at boot" if lying else "is not installed"
        guest.find(
            "driver-disk-missing",
            "warning" if fixed else "error",
            f"driver {' or '.join(wanted)} for a disk on {bus} {where}",
            "Set its Start to 0." if lying else "Install the virtio drivers at the source, or guest.convert: virt-v2v.",
        )
    for model in dict.fromkeys(nic.model for nic in guest.params.nics):
        names = drivers.WINDOWS_NIC.get(model, ())
        if names and not any(_file(tree, name) and system.has(f"{services}\\{name}") for name in names):
            guest.find(
                "driver-network-missing",
                "warning",
                f"no driver ({' or '.join(names)}) for an interface of type {model}",
                "Install it in the machine at the source.",
            )


def _file(tree: Tree, name: str) -> bool:
    return tree.exists(f"/Windows/System32/drivers/{name}.sys")


def _start_at_boot(guest: Guest, tree: Tree, chosen: str, name: str) -> bool:
    """Have a driver that is on the disk start at boot."""
    key = f"{chosen}\\Services\\{name}"
    settings = [
        Setting(key, "Start", _BOOT),
        Setting(key, "Type", 1),
        Setting(key, "ErrorControl", 1),
        Setting(key, "Group", "SCSI miniport"),
        Setting(key, "ImagePath", f"System32\\drivers\\{name}.sys", expand=True),
    ]
    return set_values(guest, tree, settings, f"driver {name}", "starts at boot")


def set_values(guest: Guest, tree: Tree, settings: list[Setting], what: str, detail: str) -> bool:
    """Have values of the SYSTEM hive written; False, with a finding, if that cannot be."""
    pending = next((item for item in guest.writes if item.path.lower() == SYSTEM.lower()), None)
    before = pending.content if pending is not None else tree.read(SYSTEM, _HIVE_BYTES)
    if before is None:
        return False
    if not hives.settled(before):
        guest.find(
            "hive-in-transaction",
            "warning",
            f"{what}: the registry was being written when the point was taken; Windows would undo a change",
            "Choose another checkpoint, or take application-consistent ones.",
        )
        return False
    try:
        made = hives.changed(before, settings)
    except Permanent as error:
        guest.find(error.code, "warning", f"{what}: {error.message}", error.hint)
        return False
    if pending is not None:
        guest.writes.remove(pending)
        guest.writes.append(writing.Write(pending.volume, pending.path, made))
        return True
    return guest.change(tree, SYSTEM, made, what, detail)
