"""Removes whatever carries a run's tag, and looks again. Points are never among it: they carry no run's tag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from farshore.errors import Conflict, NotFound
from farshore.platforms.aws import helper, inventory, tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.machines import ask, awaited, ours, unused

#: What a run may have made, in the order in which it can be removed: operation and list that show it, the name of its
#: id, what removes it, and what it is called.
_KINDS: Final = (
    ("describe_volumes", "Volumes", "VolumeId", "delete_volume", "volume"),
    ("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId", "delete_network_interface", "interface"),
    ("describe_images", "Images", "ImageId", "deregister_image", "image"),
    ("describe_snapshots", "Snapshots", "SnapshotId", "delete_snapshot", "snapshot"),
    ("describe_subnets", "Subnets", "SubnetId", "delete_subnet", "subnet"),
    ("describe_security_groups", "SecurityGroups", "GroupId", "delete_security_group", "security group"),
    ("describe_vpcs", "Vpcs", "VpcId", "delete_vpc", "VPC"),
)
#: What only served to make machines: images of nothing with their snapshots, and points with changed guests.
_HELPERS: Final = ("describe_images", "describe_snapshots")


def sweep(account: Account, tag: str) -> tuple[list[str], list[str]]:
    """Remove everything that carries ``tag``; return (removed, still there)."""
    removed = [f"machine {name}" for name in _terminate(account, tag)]
    for kind in _KINDS:
        removed += _remove(account, tag, kind)
    return removed, remaining(account, tag)


def remaining(account: Account, tag: str) -> list[str]:
    """Return what carries ``tag``."""
    left = [f"machine {item['InstanceId']}" for item in inventory.instances(account, ours(account, tag))]
    for kind in _KINDS:
        left += [f"{kind[4]} {item[kind[2]]}" for item in _found(account, tag, kind)]
    return left


def drop_helpers(account: Account, tag: str) -> None:
    """Remove what served to make a run's machines; they need it no more."""
    for kind in _KINDS:
        if kind[0] in _HELPERS:
            _remove(account, tag, kind)


def _terminate(account: Account, tag: str) -> list[str]:
    """End the machines of a run and wait until they are gone; return their names."""
    found = list(inventory.instances(account, ours(account, tag)))
    if not found:
        return []
    ids = [item["InstanceId"] for item in found]
    ask(account, "terminate_instances", InstanceIds=ids)

    await_end(account, ids)
    return [tags.tag_map(item).get(inventory.NAME, item["InstanceId"]) for item in found]


def await_end(account: Account, ids: Sequence[str]) -> None:
    """Wait until machines that were terminated are gone."""

    def gone() -> str | None:
        states = [*inventory.ALIVE, "shutting-down"]
        wanted = [{"Name": "instance-id", "Values": list(ids)}, {"Name": "instance-state-name", "Values": states}]
        pages = account.pages("ec2", "describe_instances", Filters=wanted)
        return None if any(page["Reservations"] for page in pages) else "gone"

    awaited(account, gone, f"the end of {', '.join(ids)}")


def _remove(account: Account, tag: str, kind: tuple[str, ...]) -> list[str]:
    removed = []
    # The group of a helper goes last: another one's rule names it.
    for item in sorted(_found(account, tag, kind), key=lambda one: _role(one) == helper.ROLE):
        name = item[kind[2]]
        if kind[4] == "volume":
            awaited(account, partial(unused, account, name), f"volume {name}")
        if kind[4] == "interface" and _role(item) == helper.ROLE:
            helper.leave(account, item)
        # What is in use, or gone already, shows when it is looked for again.
        with contextlib.suppress(Conflict, NotFound):
            ask(account, kind[3], **{kind[2]: name})
        removed.append(f"{kind[4]} {name}")
    return removed


def _role(item: Mapping[str, Any]) -> str:
    return tags.tag_map({"Tags": item.get("Tags") or item.get("TagSet")}).get(tags.ROLE, "")


def _found(account: Account, tag: str, kind: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    operation, key = kind[:2]
    wanted = ours(account, tag)
    more: dict[str, Any] = {}
    if operation == "describe_images":
        more["Owners"] = ["self"]
    if operation == "describe_snapshots":
        # Twice sure: a point is never one of these.
        more["OwnerIds"] = ["self"]
        wanted = [*wanted, {"Name": f"tag:{tags.ROLE}", "Values": [inventory.SHELL, inventory.GUEST]}]
    for page in account.pages("ec2", operation, Filters=wanted, **more):
        for item in page[key]:
            if operation != "describe_volumes" or item["State"] not in {"deleting", "deleted"}:
                yield item
