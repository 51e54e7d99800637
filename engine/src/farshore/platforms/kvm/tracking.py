"""Change tracking: one checkpoint and one bitmap per disk for each point, both called ``farshore-<point id>``.

All bitmaps of libvirt's checkpoints keep recording (libvirt 9.0: ``recording`` in query-block, flag ``auto`` in the
image), so the one named after a point holds everything that changed since, whatever came later. A checkpoint that is
listed proves nothing about its bitmaps.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from farshore.errors import Conflict
from farshore.platforms.kvm import images, machines
from farshore.platforms.kvm.connection import (
    CHECKPOINT_INCONSISTENT,
    INTERNAL,
    NO_CHECKPOINT,
    asking,
    code_of,
    libvirt,
    translate,
)
from farshore.platforms.kvm.domain import element, parse, text

PREFIX: Final = "farshore-"


def name(point_id: str) -> str:
    """Return what a point is called on a hypervisor."""
    return f"{PREFIX}{point_id}"


def checkpoints(handle: Any) -> set[str]:
    """Return the names of our checkpoints of a domain."""
    with asking("listing checkpoints"):
        return {found for item in handle.listAllCheckpoints(0) if (found := item.getName()).startswith(PREFIX)}


def disks_of(handle: Any, checkpoint: str) -> dict[str, Path] | None:
    """Return, per target, the image that was written when a checkpoint was made; None if it does not exist."""
    try:
        xml = handle.checkpointLookupByName(checkpoint).getXMLDesc(0)
    except libvirt.libvirtError as error:
        if code_of(error) == NO_CHECKPOINT:
            return None
        raise translate(error, f"reading checkpoint {checkpoint}") from error
    root = element(xml)
    tracked = {item.get("name", "") for item in root.findall("disks/disk") if item.get("checkpoint") == "bitmap"}
    inner = root.find("domain")
    paths = {disk.target: Path(disk.path) for disk in parse(text(inner)).disks} if inner is not None else {}
    return {target: paths.get(target, Path()) for target in tracked}


def checkpoint_xml(checkpoint: str, tracked: Collection[str], others: Iterable[str]) -> ET.Element:
    """Return the definition of a checkpoint over the targets ``tracked`` and none of the ``others``."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = checkpoint
    disks = ET.SubElement(root, "disks")
    for target in sorted(tracked):
        ET.SubElement(disks, "disk", {"name": target, "checkpoint": "bitmap", "bitmap": checkpoint})
    for target in sorted(others):
        ET.SubElement(disks, "disk", {"name": target, "checkpoint": "no"})
    return root


def adopt(handle: Any, checkpoint: str, tracked: Collection[str], others: Iterable[str]) -> None:
    """Tell libvirt of bitmaps that are in the images already, so that it can use and remove them."""
    root = checkpoint_xml(checkpoint, tracked, others)
    ET.SubElement(root, "creationTime").text = str(int(time.time()))
    root.append(element(machines.defined_xml(handle)))
    with asking(f"recording checkpoint {checkpoint}"):
        handle.checkpointCreateXML(text(root), libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)


def forget(handle: Any, names: Collection[str]) -> None:
    """Remove checkpoints and their bitmaps, whatever is left of them.

    Raises:
        Conflict: an image is held by somebody who is not this domain (``image-in-use``).
    """
    for checkpoint in sorted(names):
        if machines.power(handle) == "off":
            try:
                _forget_offline(handle, checkpoint)
            except Conflict:
                if machines.power(handle) == "off":
                    raise
            else:
                continue
        _forget_online(handle, checkpoint)


def _forget_online(handle: Any, checkpoint: str) -> None:
    try:
        found = handle.checkpointLookupByName(checkpoint)
    except libvirt.libvirtError as error:
        if code_of(error) == NO_CHECKPOINT:
            return
        raise translate(error, f"finding checkpoint {checkpoint}") from error
    try:
        found.delete(0)
    except libvirt.libvirtError as error:
        # The bitmap is gone already (it was made since the last start of a guest that died): only the name is left.
        if code_of(error) not in {INTERNAL, CHECKPOINT_INCONSISTENT}:
            raise translate(error, f"removing checkpoint {checkpoint}") from error
        with asking(f"removing checkpoint {checkpoint}"):
            found.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _forget_offline(handle: Any, checkpoint: str) -> None:
    for disk in machines.read(handle).disks:
        if not disk.tracked or not Path(disk.path).is_file():
            continue
        for layer in images.chain(Path(disk.path)):
            if layer.bitmap(checkpoint):
                images.remove_bitmap(layer.path, checkpoint)
    if checkpoint in checkpoints(handle):
        with asking(f"removing checkpoint {checkpoint}"):
            handle.checkpointLookupByName(checkpoint).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def orphans(handle: Any) -> dict[str, set[str]]:
    """Return our bitmaps that no checkpoint names any more, each with its targets.

    Of a running machine the images tell only those that were stored at its last stop.
    """
    known = checkpoints(handle)
    found: dict[str, set[str]] = {}
    for disk in machines.read(handle).disks:
        if not disk.tracked or not Path(disk.path).is_file():
            continue
        for layer in images.chain(Path(disk.path)):
            for bitmap in layer.bitmaps:
                if bitmap.name.startswith(PREFIX) and bitmap.name not in known:
                    found.setdefault(bitmap.name, set()).add(disk.target)
    return found
