"""Keeps an instance from starting.

EC2 has no switch for that. What it does refuse is to start an instance that has no root volume, so a fence takes the
root volume of a machine that is off out of its place and keeps it, marked with where it belongs. A machine that is on
cannot lose its root volume: until it is off its fence is a mark that only Farshore obeys, and whatever powers it off
here sets the bar at once. See docs/adr/0017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farshore.errors import Conflict, Fenced
from farshore.platforms.aws import inventory, tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.machines import ask, attach, awaited, detach


def epoch_of(raw: Mapping[str, Any]) -> int | None:
    """Return the epoch that an instance is fenced in; None if it is not."""
    found = tags.tag_map(raw).get(tags.FENCE, "")
    return int(found) if found.isdecimal() else None


def refuse(raw: Mapping[str, Any]) -> None:
    """Raise ``Fenced`` if the instance is."""
    epoch = epoch_of(raw)
    if epoch is not None:
        raise Fenced(
            f"machine {tags.tag_map(raw).get(tags.NAME, raw['InstanceId'])} is fenced since epoch {epoch} and must not"
            " start",
            code="machine-fenced",
            hint="The machine runs at another site. Fail back, or lift the fence if you are sure that it does not.",
            machine_id=raw["InstanceId"],
            epoch=epoch,
        )


def fence(account: Account, machine_id: str, epoch: int) -> bool:
    """Mark a machine, and bar it if it is off; the epoch never falls. True if what can be done now was read back."""
    raw = inventory.instance(account, machine_id)
    epoch = max(epoch, epoch_of(raw) or 0)
    if epoch_of(raw) != epoch:
        ask(account, "create_tags", Resources=[machine_id], Tags=tags.tag_list({tags.FENCE: str(epoch)}))
    bar(account, machine_id)
    after = inventory.instance(account, machine_id)
    return epoch_of(after) == epoch and (after["State"]["Name"] != "stopped" or barred(after))


def bar(account: Account, machine_id: str) -> None:
    """Take the root volume of a fenced machine that is off out of its place; does nothing to others."""
    raw = inventory.instance(account, machine_id)
    if epoch_of(raw) is None or raw["State"]["Name"] != "stopped":
        return
    root = raw.get("RootDeviceName", "")
    for item in raw.get("BlockDeviceMappings") or ():
        if item["DeviceName"] == root:
            volume_id = item["Ebs"]["VolumeId"]
            # Where it belongs comes first: a volume that nobody knows would be lost.
            home = {inventory.FENCED_FROM: machine_id, inventory.FENCED_DEVICE: root}
            if item["Ebs"].get("DeleteOnTermination"):
                home[inventory.FENCED_DELETE] = "yes"
            ask(account, "create_tags", Resources=[volume_id], Tags=tags.tag_list(home))
            detach(account, volume_id, machine_id)


def barred(raw: Mapping[str, Any]) -> bool:
    """Say whether EC2 itself refuses to start this instance."""
    return all(item["DeviceName"] != raw.get("RootDeviceName") for item in raw.get("BlockDeviceMappings") or ())


def lift(account: Account, machine_id: str) -> None:
    """Put the root volume back, then take the marks away.

    Raises:
        Conflict: the machine has no root volume, and none is known to be its.
    """
    raw = inventory.instance(account, machine_id)
    if epoch_of(raw) is None:
        return
    kept = list(inventory.volumes(account, [{"Name": f"tag:{inventory.FENCED_FROM}", "Values": [machine_id]}]))
    if barred(raw) and not kept:
        raise Conflict(
            f"the root volume that the fence took from {machine_id} is gone",
            code="fence-volume-gone",
            hint="Make one from a checkpoint or snapshot, attach it at the root device, and remove the tag"
            f" {tags.FENCE}.",
            machine_id=machine_id,
        )
    gone = [{"Key": key} for key in (inventory.FENCED_FROM, inventory.FENCED_DEVICE, inventory.FENCED_DELETE)]
    for volume in kept:
        known = tags.tag_map(volume)
        device = known[inventory.FENCED_DEVICE]
        attach(account, machine_id, device, volume["VolumeId"])
        if inventory.FENCED_DELETE in known:
            mapping = {"DeviceName": device, "Ebs": {"DeleteOnTermination": True}}
            ask(account, "modify_instance_attribute", InstanceId=machine_id, BlockDeviceMappings=[mapping])
        ask(account, "delete_tags", Resources=[volume["VolumeId"]], Tags=gone)
    ask(account, "delete_tags", Resources=[machine_id], Tags=[{"Key": tags.FENCE}])

    def free() -> str | None:
        return machine_id if epoch_of(inventory.instance(account, machine_id)) is None else None

    awaited(account, free, f"the fence of {machine_id}")
