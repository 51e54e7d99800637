"""Checks of a Linux guest: will it find its disks, its drivers and its boot loader where it is going to run?"""

from __future__ import annotations

import re
import uuid
from typing import Final

from farshore.recovery.guest import fstab, kernels
from farshore.recovery.guest.broken import BROKEN
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import FileSystem, Tree, open_volume
from farshore.recovery.guest.volumes import Layout, Volume

_RELEASES: Final = ("/etc/os-release", "/usr/lib/os-release")
_LOADERS: Final = (
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/grub/grub.conf",
    "/boot/grub/menu.lst",
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/boot/syslinux.cfg",
    "/boot/syslinux/syslinux.cfg",
)
_ENTRIES: Final = "/boot/loader/entries"
_ROOT: Final = re.compile(r"(?<=[\s\"']root=)(/dev/[^\s\"']+)")
_FALLBACK: Final = "/EFI/BOOT/BOOTX64.EFI"
_LVM: Final = re.compile(r"^/dev/(?:mapper/|[^/]+/[^/]+$)")


def find_root(layout: Layout) -> Tree | None:
    """Return the files of the Linux on these disks, with what its fstab mounts; None if there is none."""
    opened = [(volume, system) for volume in layout.volumes if (system := open_volume(volume)) is not None]
    for volume, system in opened:
        tree = Tree(volume, system)
        if volume.content in {"ext", "xfs", "btrfs"} and tree.any_of(_RELEASES):
            table = tree.text("/etc/fstab") or ""
            for entry in sorted(fstab.parse(table), key=lambda one: one.point):
                found = _volume_of(entry.device, layout)
                mounted = next((item for item in opened if item[0] is found), None)
                if mounted is not None and found is not volume and entry.point.startswith("/"):
                    tree.mount(entry.point, *mounted)
            if not tree.names("/boot"):
                # A small system may keep its kernel on a volume that it mounts nowhere.
                for other, files in opened:
                    if other.content == "fat" and any(
                        kernels.KERNEL.fullmatch(name) for name in Tree(other, files).names("/")
                    ):
                        tree.mount("/boot", other, files)
            return tree
    return None


def check(guest: Guest, tree: Tree) -> None:
    """Look at everything."""
    guest.system = _name(tree)
    _fstab(guest, tree)
    _crypttab(guest, tree)
    kernels.check(guest, tree)
    _boot_loader(guest, tree)
    _network(guest, tree)


def _name(tree: Tree) -> str:
    text = next((text for path in _RELEASES if (text := tree.text(path)) is not None), "")
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return (fields.get("PRETTY_NAME") or fields.get("NAME") or "Linux").strip().strip("\"'")[:100]


def identity(volume: Volume, system: FileSystem | None) -> str:
    """Return the UUID that mounts call a volume's content by, empty if it has none."""
    found = getattr(system, "uuid", "")
    if found:
        return str(found)
    try:
        if volume.content == "swap":
            volume.handle.seek(1036)
            return str(uuid.UUID(bytes=volume.handle.read(16)))
        if volume.content == "luks":  # the same place in both versions of the header
            volume.handle.seek(168)
            return str(uuid.UUID(volume.handle.read(40).rstrip(b"\0").decode()))
        if volume.content == "fat":
            volume.handle.seek(0)
            head = volume.handle.read(90)
            serial = head[67:71] if head[82:87] == b"FAT32" else head[39:43]
            return f"{serial[3]:02X}{serial[2]:02X}-{serial[1]:02X}{serial[0]:02X}"
    except BROKEN:
        return ""
    return ""


def _volume_of(device: str, layout: Layout) -> Volume | None:
    """Return the volume that an entry of fstab names, None if it cannot be told."""
    key, _, value = device.partition("=")
    value = value.strip("\"'").lower()
    if key == "UUID":
        return next((one for one in layout.volumes if identity(one, open_volume(one)).lower() == value), None)
    if key == "PARTUUID":
        return next((one for one in layout.volumes if one.partition_id == value), None)
    if (place := fstab.disk_index(device)) is not None:
        disks = list(dict.fromkeys(one.disk.disk_id for one in layout.volumes))
        index, number = place
        if index < len(disks):
            return next(
                (one for one in layout.volumes if one.disk.disk_id == disks[index] and one.number == number), None
            )
        return None
    if _LVM.match(device):
        wanted = device.removeprefix("/dev/mapper/").removeprefix("/dev/")
        for one in layout.volumes:
            group, _, logical = one.name.partition("/")
            if wanted in {one.name, f"{group.replace('-', '--')}-{logical.replace('-', '--')}"}:
                return one
    return None


def _fstab(guest: Guest, tree: Tree) -> None:
    text = tree.text("/etc/fstab")
    if text is None:
        return
    bus = guest.bus()
    names: dict[str, str] = {}
    left: list[str] = []
    for entry in fstab.parse(text):
        volume = _volume_of(entry.device, guest.layout)
        if fstab.disk_index(entry.device) is None:
            if entry.device.startswith(("UUID=", "PARTUUID=")) and volume is None and entry.needed:
                guest.find(
                    "fstab-unknown",
                    "warning",
                    f"fstab mounts {entry.device} on {entry.point}, and none of the disks that were looked at has it",
                    "Replicate all disks of the machine, or add nofail to the entry.",
                )
            continue
        found = identity(volume, open_volume(volume)) if volume is not None else ""
        if found:
            names[entry.device] = f"UUID={found}"
        else:
            left.append(entry.device)
        if not fstab.fits(entry.device, bus):
            guest.find(
                "fstab-by-path",
                "error" if entry.needed and not (found and guest.params.policy.fix) else "warning",
                f"fstab mounts {entry.device} on {entry.point}; a disk on {bus} has another name",
                f"Write UUID={found} instead." if found else "Name it by UUID.",
            )
        else:
            guest.find(
                "fstab-by-path",
                "info",
                f"fstab mounts {entry.device} on {entry.point} by its place, which another order of disks changes",
                f"Write UUID={found} instead." if found else "Name it by UUID.",
            )
    if names and guest.params.policy.fix:
        changed = fstab.renamed(text, names)
        detail = ", ".join(f"{old} → {new}" for old, new in names.items())
        guest.change(tree, "/etc/fstab", changed.encode(errors="surrogateescape"), "fstab", detail)


def loaders(tree: Tree) -> list[str]:
    """Return the files in which boot loaders have a kernel's command line."""
    path = tree.any_of(_LOADERS)
    names = [name for name in tree.names(_ENTRIES) if name.endswith(".conf")]
    return [*([path] if path is not None else []), *(f"{_ENTRIES}/{name}" for name in names)]


def _crypttab(guest: Guest, tree: Tree) -> None:
    """Look at what names encrypted volumes (crypttab(5): name, device, key, options)."""
    text = tree.text("/etc/crypttab")
    lines = (text or "").split("\n")
    names: list[str] = []
    for number, line in enumerate(lines):
        fields = line.split()
        if len(fields) < 2 or line.lstrip().startswith("#") or fstab.disk_index(fields[1]) is None:
            continue
        device = fields[1]
        volume = _volume_of(device, guest.layout)
        found = identity(volume, None) if volume is not None and volume.content == "luks" else ""
        fixed = bool(found) and guest.params.policy.fix
        grave = not fixed and not fstab.fits(device, guest.bus())
        guest.find(
            "crypttab-by-path",
            "warning" if grave else "info",
            f"crypttab opens {device} as {fields[0]} by its place, and a disk on {guest.bus()} may have another name",
            f"Write UUID={found} instead." if found else "Name it by UUID.",
        )
        if fixed:
            lines[number] = line.replace(device, f"UUID={found}", 1)
            names.append(f"{device} → UUID={found}")
    if names:
        changed = "\n".join(lines).encode(errors="surrogateescape")
        guest.change(tree, "/etc/crypttab", changed, "crypttab", ", ".join(names))


def _boot_loader(guest: Guest, tree: Tree) -> None:
    found = loaders(tree)
    if guest.params.firmware == "uefi":
        _uefi(guest)
    elif not found:
        guest.find(
            "boot-loader-missing",
            "warning",
            "no configuration of a boot loader that is known (GRUB, SYSLINUX) was found",
            "See whether the machine starts; mount /boot in its fstab.",
        )
    else:
        _boot_code(guest)
    for name in found:
        text = tree.text(name)
        if text is not None:
            _root(guest, tree, name, text)


def _root(guest: Guest, tree: Tree, name: str, text: str) -> None:
    """Look at what a kernel's command line says the root is."""
    names: dict[str, str] = {}
    for device in dict.fromkeys(_ROOT.findall(text)):
        if fstab.disk_index(device) is None or fstab.fits(device, guest.bus()):
            continue
        volume = _volume_of(device, guest.layout)
        found = identity(volume, open_volume(volume)) if volume is not None else ""
        fixed = bool(found) and guest.params.policy.fix
        if found:
            names[device] = f"UUID={found}"
        guest.find(
            "boot-root-by-path",
            "warning" if fixed else "error",
            f"{name} starts with root={device}; a disk on {guest.bus()} has another name",
            f"Write root=UUID={found}." if found else "Name it by UUID.",
        )
    if names and guest.params.policy.fix:
        changed = _ROOT.sub(lambda found: names.get(found[1], found[1]), text)
        guest.change(tree, name, changed.encode(errors="surrogateescape"), "boot loader")


def _boot_code(guest: Guest) -> None:
    disk = next((one.disk for one in guest.layout.volumes if one.disk.disk_id == guest.boot_disk()), None)
    if disk is None:
        return
    with disk.path.open("rb") as handle:
        if not any(handle.read(440)):
            guest.find(
                "boot-code-missing",
                "error",
                f"disk {disk.disk_id} has no boot code, and the machine's firmware is a BIOS",
                "Start from the disk that has it, or choose firmware uefi at the source.",
                disk.disk_id,
            )


def _uefi(guest: Guest) -> None:
    """The firmware at the target has none of the source's boot entries: it starts what is at the one fallback path."""
    for volume in guest.layout.volumes:
        system = open_volume(volume) if volume.content == "fat" else None
        if system is None:
            continue
        files = Tree(volume, system)
        if not files.is_dir("/EFI"):
            continue
        if files.exists(_FALLBACK):
            return
        loader = _loader(files)
        data = files.read(loader, 64 << 20) if loader else None
        fixed = data is not None and guest.params.policy.fix
        guest.find(
            "uefi-fallback-missing",
            "warning" if fixed else "error",
            f"volume {volume.name} has no {_FALLBACK}, and the firmware at the target knows no other",
            f"Copy {loader} there, with the files beside it." if loader else "Install a boot loader there.",
            volume.name,
        )
        if fixed and loader is not None:
            folder = loader.rsplit("/", 1)[0]
            for name in files.names(folder):
                copied = files.read(f"{folder}/{name}", 64 << 20)
                if copied is not None:
                    goal = _FALLBACK if f"{folder}/{name}" == loader else f"/EFI/BOOT/{name}"
                    guest.change(files, goal, copied, "boot loader", f"{folder}/{name} → {goal}")
        return
    guest.find(
        "uefi-partition-missing", "error", "no EFI system partition was found", "Replicate the disk that has it."
    )


def _loader(files: Tree) -> str | None:
    for vendor in files.names("/EFI"):
        names = files.names(f"/EFI/{vendor}")
        for wanted in ("shimx64.efi", "grubx64.efi", "systemd-bootx64.efi"):
            found = next((name for name in names if name.lower() == wanted), None)
            if found:
                return f"/EFI/{vendor}/{found}"
    return None


def _network(guest: Guest, tree: Tree) -> None:
    """Rules that tie a name to a hardware address that changes."""
    moved = {nic.source_mac.lower(): nic.mac.lower() for nic in guest.params.nics if nic.source_mac}
    moved = {old: new for old, new in moved.items() if old != new}
    folder = "/etc/udev/rules.d"
    for name in tree.names(folder) if moved else []:
        text = tree.text(f"{folder}/{name}") or ""
        tied = [old for old in moved if old in text.lower()]
        if tied:
            guest.find(
                "network-name-tied",
                "info" if guest.params.policy.fix else "warning",
                f"{folder}/{name} ties a name to {', '.join(tied)}, which the machine has no more",
                "Write the new hardware address, or remove the rule.",
            )
            if guest.params.policy.fix:
                changed = text
                for old in tied:
                    changed = re.sub(re.escape(old), moved[old], changed, flags=re.IGNORECASE)
                guest.change(tree, f"{folder}/{name}", changed.encode(errors="surrogateescape"), "network name")
