"""Everything that is done to one guest, in order: look, check, readdress, write."""

from __future__ import annotations

from collections.abc import Sequence

from farshore.errors import Permanent
from farshore.model.guest import MachinePrepareParams, MachinePrepareResult, stopping
from farshore.model.machine import Finding
from farshore.recovery.guest import cloud_init, console, linux, network, windows, windows_network, writing
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import Tree, open_volume
from farshore.recovery.guest.volumes import Content, RawDisk, look
from farshore.recovery.readdress import record

#: File systems that are read here.
_READ = frozenset({"ext", "xfs", "btrfs", "fat", "ntfs"})
_ENCRYPTED: dict[Content, tuple[str, str, str]] = {
    "luks": ("encrypted-luks", "LUKS", "See that the key can be given when it starts (console, Tang server)."),
    "bitlocker": (
        "encrypted-bitlocker",
        "BitLocker",
        "Have its recovery key at hand, or suspend BitLocker at the source: a key in a TPM stays behind.",
    ),
}


def prepare(params: MachinePrepareParams, disks: Sequence[RawDisk]) -> MachinePrepareResult:
    """Check, repair and readdress the guest on ``disks``; repeated, it finds its own work done."""
    guest = Guest(params, look(disks))
    for volume in guest.layout.volumes:
        try:
            writing.settle(volume)
        except Permanent as error:
            guest.find("filesystem-broken", "error", error.message, error.hint, volume.name)
    # What was replayed is read anew.
    guest.layout = look(disks)
    if params.policy.checks == "on":
        _disks(guest)
    tree = linux.find_root(guest.layout)
    root = windows.find_root(guest.layout) if tree is None else None
    if params.policy.checks == "on":
        if tree is not None:
            linux.check(guest, tree)
        elif root is not None:
            windows.check(guest, root)
        else:
            _nothing(guest)
    if tree is not None:
        _linux(guest, tree)
    elif root is not None and not windows.sleeps(root):
        windows_network.apply(guest, root)
    _write(guest)
    findings = tuple(guest.findings)
    return MachinePrepareResult(
        machine_id=params.machine_id,
        system=guest.system,
        findings=findings,
        changes=tuple(guest.changes),
        stopped=stopping(findings, params.policy),
    )


def _linux(guest: Guest, tree: Tree) -> None:
    """Give a Linux what the run's purpose and its platform ask for; all of it can be undone."""
    kept = record.load(tree.read(record.PATH))
    before = kept.dump()
    network.apply(guest, tree, kept)
    policy = guest.params.policy
    if guest.params.platform and policy.fix and policy.checks == "on":
        cloud_init.apply(guest, tree, kept)
        console.apply(guest, tree, kept, linux.loaders(tree))
    if kept.dump() != before:
        guest.change(tree, record.PATH, kept.dump(), "record", "what was there before is kept in the guest")


def _disks(guest: Guest) -> None:
    for disk in guest.layout.bare:
        boots = disk.disk_id == guest.boot_disk()
        guest.find(
            "no-partition-table",
            "error" if boots else "info",
            f"disk {disk.disk_id} has no partition table and holds no file system that is known",
            "See whether the copy is of the right disk, and whole: `farshore checkpoint scrub`." if boots else "",
            disk.disk_id,
        )
    for volume in guest.layout.volumes:
        if volume.content in _ENCRYPTED:
            code, name, remedy = _ENCRYPTED[volume.content]
            guest.find(
                code,
                "warning",
                f"volume {volume.name} is encrypted ({name}): what is in it is not seen",
                remedy,
                volume.name,
            )
        if volume.content in _READ and open_volume(volume) is None:
            guest.find(
                "filesystem-unread",
                "warning",
                f"volume {volume.name} ({volume.content}) cannot be read: what is in it was not checked",
                "See whether the machine at the source mounts it; scrub the checkpoint: `farshore checkpoint scrub`.",
                volume.name,
            )
        if volume.content == "lvm" and not any(
            other.partition_id == "" and "/" in other.name for other in guest.layout.volumes
        ):
            guest.find(
                "lvm-unread",
                "warning",
                f"the volume group on {volume.name} cannot be read: what is in it was not checked",
                "See that all disks of the group are in the plan, and none is excluded.",
                volume.name,
            )
        if volume.content == "raid":
            guest.find(
                "raid-unread", "warning", f"volume {volume.name} is part of a RAID, which is not read", "", volume.name
            )


def _nothing(guest: Guest) -> None:
    guest.find("system-unknown", "info", "no Linux or Windows was found on the disks: nothing more was looked at")


def _write(guest: Guest) -> None:
    """Do all writes, a volume at a time; one that cannot be written is a finding."""
    by_volume: dict[str, list[writing.Write]] = {}
    for item in guest.writes:
        by_volume.setdefault(item.volume.name, []).append(item)
    for name, items in by_volume.items():
        try:
            writing.write(items[0].volume, items)
        except Permanent as error:
            guest.findings.append(
                Finding(
                    code=error.code,
                    severity="error",
                    subject=name,
                    message=f"{', '.join(item.path for item in items)} could not be written: {error.message}",
                    remedy=error.hint,
                )
            )
