"""A Linux guest's kernel: has it the drivers of the disk and the interfaces that the machine has at its target?"""

from __future__ import annotations

import re
from typing import Final

from farshore.recovery.guest import drivers, initramfs, supplement
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import Tree

KERNEL: Final = re.compile(r"vmlinu[xz](?:-(?P<version>.+))?")
_INITRAMFS: Final = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initrd-{}.img")
_PLAIN_INITRAMFS: Final = ("initrd", "initrd.img", "initramfs.img")
_REMEDY: Final = (
    "In the machine at the source: `dracut -f --no-hostonly`, or MODULES=most and `update-initramfs -u`;"
    " or set guest.convert: virt-v2v."
)


def check(guest: Guest, tree: Tree) -> None:
    """Look at the newest kernel; put drivers that its initial file system lacks behind that."""
    names = tree.names("/boot")
    found = [one for name in names if (one := KERNEL.fullmatch(name))]
    versions = sorted((one["version"] for one in found if one["version"]), key=_version)
    if not found:
        guest.find("kernel-missing", "warning", "no kernel was found in /boot", "Mount /boot in the guest's fstab.")
        return
    newest = versions[-1] if versions else ""
    patterns = [pattern.format(newest) for pattern in _INITRAMFS] if newest else list(_PLAIN_INITRAMFS)
    path = next((f"/boot/{name}" for name in patterns if name in names), "")
    base = next((one for one in (f"/lib/modules/{newest}", f"/usr/lib/modules/{newest}") if tree.is_dir(one)), "")
    built_in = drivers.modules((tree.text(f"{base}/modules.builtin") or "").splitlines()) if base else frozenset()
    configured = _configured(tree.text(f"/boot/config-{newest}") or "") if newest else frozenset()
    packed = _disk(guest, tree, newest, path, base, built_in | configured)
    loadable = drivers.modules((tree.text(f"{base}/modules.dep") or "").replace(":", " ").split()) if base else None
    if loadable is not None:
        have = loadable | built_in | configured | packed
        for model in dict.fromkeys(nic.model for nic in guest.params.nics):
            missing = [one for one in drivers.LINUX_NIC.get(model, ()) if one not in have]
            if missing:
                guest.find(
                    "driver-network-missing",
                    "warning",
                    f"kernel {newest} has no {', '.join(missing)} for an interface of type {model}",
                    "Install the kernel's whole set of modules in the machine at the source.",
                )


def _disk(guest: Guest, tree: Tree, version: str, path: str, base: str, inside: frozenset[str]) -> frozenset[str]:
    """Look whether the disk's drivers are there when a kernel starts; return the modules in its initramfs."""
    fix = guest.params.policy.fix
    data = supplement.read(tree, path) if path else None
    before = supplement.original(tree, path, data) if data is not None and fix else data
    contents = initramfs.read(before) if before else None
    packed = drivers.modules(contents.names) if contents is not None else frozenset()
    if path and contents is None:
        guest.find("initramfs-unreadable", "warning", f"{path} is damaged, or of a form that is not known")
        return packed
    missing = [one for one in drivers.LINUX_DISK.get(guest.bus(), ()) if one not in packed | inside]
    made = None
    if missing and fix and contents is not None and before is not None and base:
        made = supplement.made(tree, base, before, contents, missing)
    lacks = (
        f"kernel {version or 'without a version'} has no {', '.join(missing)} when it starts,"
        f" and its disk is on {guest.bus()}"
    )
    if made is not None:
        guest.find(
            "driver-disk-added", "warning", f"{lacks}: put behind its initial file system, which was not tried", _REMEDY
        )
    elif missing:
        # Without modules.builtin and a configuration nobody knows what the kernel has in itself.
        guest.find("driver-disk-missing", "error" if inside else "warning", lacks, _REMEDY)
    if before is not None and data is not None and fix:
        after, added = made if made is not None else (before, [])
        detail = f"{path}: {', '.join(drivers.module(one) for one in added) or 'as it was'}"
        if after != data:
            supplement.put(guest, tree, path, before, after, detail)
    return packed


def _version(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"[.\-_+~]", text)]


def _configured(text: str) -> frozenset[str]:
    """Return modules that a kernel's configuration has built in."""
    symbols = {
        "VIRTIO_PCI": "virtio_pci",
        "VIRTIO_BLK": "virtio_blk",
        "SCSI_VIRTIO": "virtio_scsi",
        "VIRTIO_NET": "virtio_net",
        "BLK_DEV_SD": "sd_mod",
        "SATA_AHCI": "ahci",
        "ATA_PIIX": "ata_piix",
        "BLK_DEV_NVME": "nvme",
        "XEN_BLKDEV_FRONTEND": "xen_blkfront",
        "USB_STORAGE": "usb_storage",
        "ENA_ETHERNET": "ena",
    }
    return frozenset(name for symbol, name in symbols.items() if f"CONFIG_{symbol}=y\n" in text)
