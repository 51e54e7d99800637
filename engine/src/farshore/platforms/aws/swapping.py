"""Puts volumes in the places of others of a machine that is off and was never started, all or none.

EC2 has no such call. So the new volumes and the machine carry the name of the exchange, and once the machine does, it
is carried to its end by whoever comes next (docs/internals/aws.md, "Guests"). Until then the machine does not start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from farshore.errors import NotFound
from farshore.platforms.aws import inventory, tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.ebs import Ebs
from farshore.platforms.aws.machines import ask, attach, awaited, detach, named, unused


def begin(account: Account, machine_id: str, swap: str) -> None:
    """Decide that the volumes of ``swap`` get their places: the commit point. :func:`settle` does it."""
    ask(account, "create_tags", Resources=[machine_id], Tags=tags.tag_list({inventory.SWAP: swap}))


def settle(account: Account, ebs: Ebs, machine_id: str) -> dict[str, Any]:
    """Carry an exchange to its end, remove what no exchange will need any more, and return the machine as it is then.

    Of a machine of ours without one, what an earlier attempt has left is removed.
    """
    raw = inventory.instance(account, machine_id)
    swap = tags.tag_map(raw).get(inventory.SWAP)
    out: set[str] = set()
    if swap is not None:
        taken = {item["DeviceName"]: item["Ebs"]["VolumeId"] for item in raw.get("BlockDeviceMappings") or ()}
        for volume in list(inventory.volumes(account, [{"Name": f"tag:{inventory.SWAP}", "Values": [swap]}])):
            place, volume_id = tags.tag_map(volume)[inventory.PLACE], volume["VolumeId"]
            if taken.get(place, volume_id) != volume_id:
                detach(account, taken[place], machine_id)
                out.add(str(taken[place]))
            attach(account, machine_id, place, volume_id)
        raw = inventory.instance(account, machine_id)
    in_use = _drop_volumes(account, raw, out)
    _drop_snapshots(ebs, mine(account, raw), in_use)
    if swap is not None:
        ask(account, "delete_tags", Resources=[machine_id], Tags=[{"Key": inventory.SWAP}])
    return raw


def mine(account: Account, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the filters that find what was made for a machine of ours."""
    marks = tags.tag_map(raw)
    return named(account, marks[tags.TAG], marks[inventory.NAME])


def _drop_volumes(account: Account, raw: Mapping[str, Any], out: Collection[str]) -> set[str]:
    """Remove the volumes that were made for a machine and have no place in it; return what the others are made of.

    Those that are just ``out`` of their places go in any case: lists of volumes are behind at times.
    """
    in_use, spare = set(), set(out)
    for volume in list(inventory.volumes(account, mine(account, raw))):
        if volume["VolumeId"] in out:
            continue
        if volume.get("Attachments"):
            in_use.add(str(volume.get("SnapshotId", "")))
        elif inventory.FENCED_FROM not in tags.tag_map(volume):
            spare.add(str(volume["VolumeId"]))
    for volume_id in sorted(spare):
        awaited(account, partial(unused, account, volume_id), f"volume {volume_id}")
        with contextlib.suppress(NotFound):
            ask(account, "delete_volume", VolumeId=volume_id)
    return in_use


def _drop_snapshots(ebs: Ebs, made: list[dict[str, Any]], in_use: Collection[str]) -> None:
    """Remove the snapshots with changed guests that no volume of the machine is made of."""
    role = {"Name": f"tag:{tags.ROLE}", "Values": [inventory.GUEST]}
    for found in list(ebs.find([*made, role])):
        if found.snapshot_id not in in_use:
            ebs.delete(found.snapshot_id)
