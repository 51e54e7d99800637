"""Which drivers a guest needs for the devices that a machine has at its target. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Linux modules of each bus a system disk can be on, and of what carries that bus.
LINUX_DISK: Final = {
    "virtio": ("virtio_pci", "virtio_blk"),
    "scsi": ("virtio_pci", "virtio_scsi", "sd_mod"),
    "sata": ("ahci", "sd_mod"),
    "ide": ("ata_piix", "sd_mod"),
    "nvme": ("nvme",),
    "xen": ("xen_blkfront",),
    "usb": ("usb_storage", "sd_mod"),
}
LINUX_NIC: Final = {
    "virtio": ("virtio_net",),
    "e1000": ("e1000",),
    "e1000e": ("e1000e",),
    "rtl8139": ("8139cp",),
    "vmxnet3": ("vmxnet3",),
    "ena": ("ena",),
    "netvsc": ("hv_netvsc",),
}
#: Windows services; the first of a bus that is there will do.
WINDOWS_DISK: Final = {
    "virtio": ("viostor",),
    "scsi": ("vioscsi",),
    "sata": ("storahci", "msahci", "iastorv"),
    "ide": ("intelide", "atapi", "pciide"),
    "nvme": ("stornvme",),
    "xen": ("xenvbd",),
}
WINDOWS_NIC: Final = {
    "virtio": ("netkvm",),
    "e1000": ("e1g60", "e1iexpress"),
    "e1000e": ("e1iexpress", "e1dexpress"),
    "rtl8139": ("rtl8139", "rtl8023xp"),
    "vmxnet3": ("vmxnet3ndis6",),
    "ena": ("ena",),
    "netvsc": ("netvsc",),
}


def module(path: str) -> str:
    """Return the name of the Linux module that a path such as ``kernel/fs/ext4/ext4.ko.xz`` holds, else nothing."""
    name = path.rsplit("/", 1)[-1]
    return name.split(".ko")[0].replace("-", "_") if ".ko" in name else ""


def modules(paths: Iterable[str]) -> frozenset[str]:
    """Return the names of all modules among ``paths``."""
    return frozenset(found for path in paths if (found := module(path)))
