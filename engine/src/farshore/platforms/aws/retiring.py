"""Machines that were the primary before, once they may go: all that is theirs alone is deleted.

The node's role may delete only what carries the site's tag, so what goes is marked first, all of it: by its marks it is
found again where a deletion was cut short, also once the machine is gone. Volumes go first and the machine after them:
without its volumes it is still barred, and still found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from farshore.errors import Conflict, NotFound
from farshore.model.task import RetireResult
from farshore.platforms.aws import fence, inventory, tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.machines import ask, awaited, detach, unused
from farshore.platforms.aws.sweeping import await_end
from farshore.platforms.existing import fenced_later

#: On a machine that is deleted, and on what goes with it: its id.
RETIRED: Final = "farshore:retired"


@dataclass(frozen=True, slots=True)
class _Belongings:
    """What a machine has: what goes with it, by id with words for it, and what is kept, with the reason."""

    volumes: Mapping[str, str]
    interfaces: Mapping[str, str]
    kept: tuple[str, ...] = ()


def remove(account: Account, machine_id: str, epoch: int) -> RetireResult:
    """Delete an old primary with its volumes, and with the interfaces that were made for it here.

    Kept are volumes that another machine has too, interfaces of others that outlive their machine, and elastic
    addresses. Snapshots are not told of: they stay or go by other rules.

    Raises:
        NotFound: there is no such machine, and nothing is left of one.
        Conflict: it is not off, not barred, fenced in a later epoch, or protected from termination.
    """
    begun = _marked(account, machine_id)
    try:
        raw = inventory.instance(account, machine_id)
    except NotFound:
        if not begun.volumes and not begun.interfaces:
            raise
        _delete(account, machine_id, begun)
        return RetireResult(machine_id=machine_id, removed=(*begun.volumes.values(), *begun.interfaces.values()))
    _refuse(account, raw, epoch)
    found = _belongings(account, raw)
    # Volumes that an earlier try has detached and not deleted are known by their marks alone.
    has = _Belongings({**begun.volumes, **found.volumes}, {**begun.interfaces, **found.interfaces}, found.kept)
    marks = tags.tag_list({tags.SITE: _site(account), RETIRED: machine_id})
    ask(account, "create_tags", Resources=[machine_id, *has.volumes, *has.interfaces], Tags=marks)
    for volume_id in has.volumes:
        detach(account, volume_id, machine_id)
    _delete(account, machine_id, has, alive=True)
    name = tags.tag_map(raw).get(tags.NAME)
    machine = f"machine {name} ({machine_id})" if name else f"machine {machine_id}"
    removed = (*has.volumes.values(), machine, *has.interfaces.values())
    return RetireResult(machine_id=machine_id, removed=removed, kept=has.kept)


def _refuse(account: Account, raw: Mapping[str, Any], epoch: int) -> None:
    machine_id, name = raw["InstanceId"], tags.tag_map(raw).get(tags.NAME, raw["InstanceId"])
    since = fence.epoch_of(inventory.resting(raw)) or 0
    if since > epoch or not fence.barred(raw):
        raise fenced_later(name, machine_id, since, epoch)
    said = account.patiently(
        "ec2", "describe_instance_attribute", InstanceId=machine_id, Attribute="disableApiTermination"
    )
    if said["DisableApiTermination"].get("Value"):
        raise Conflict(
            f"machine {name} is protected from termination; nothing of it was deleted",
            code="termination-protected",
            hint="Whoever protected it has to allow it:"
            f" aws ec2 modify-instance-attribute --instance-id {machine_id} --no-disable-api-termination",
            machine_id=machine_id,
        )


def _belongings(account: Account, raw: Mapping[str, Any]) -> _Belongings:
    """Return what a machine has: its volumes, also the one that its fence holds, and its interfaces."""
    machine_id = raw["InstanceId"]
    volumes, interfaces, kept = {}, {}, []
    for name in ("attachment.instance-id", f"tag:{inventory.FENCED_FROM}"):
        for volume in inventory.volumes(account, [{"Name": name, "Values": [machine_id]}]):
            if users := _others(volume, machine_id):
                kept.append(f"{_volume(volume)}: it is used by machine {', '.join(users)}")
            else:
                volumes[volume["VolumeId"]] = _volume(volume)
    ids = [nic["NetworkInterfaceId"] for nic in raw.get("NetworkInterfaces") or ()]
    for nic in _interfaces(account, "network-interface-id", ids):
        address = nic.get("Association") or {}
        if "AllocationId" in address:
            kept.append(f"elastic address {address['PublicIp']} ({address['AllocationId']}): others may use it")
        if {"Key": tags.SITE, "Value": _site(account)} in (nic.get("TagSet") or ()):
            interfaces[nic["NetworkInterfaceId"]] = f"interface {nic['NetworkInterfaceId']}"
        elif not (nic.get("Attachment") or {}).get("DeleteOnTermination", True):
            kept.append(f"interface {nic['NetworkInterfaceId']}: it was made to outlive its machine")
    return _Belongings(volumes, interfaces, tuple(kept))


def _marked(account: Account, machine_id: str) -> _Belongings:
    """Return what was marked to go with a machine, and is not deleted yet."""
    volumes = {
        volume["VolumeId"]: _volume(volume)
        for volume in inventory.volumes(account, [{"Name": f"tag:{RETIRED}", "Values": [machine_id]}])
        if volume["State"] not in {"deleting", "deleted"} and not _others(volume, machine_id)
    }
    found = _interfaces(account, f"tag:{RETIRED}", [machine_id])
    return _Belongings(volumes, {nic["NetworkInterfaceId"]: f"interface {nic['NetworkInterfaceId']}" for nic in found})


def _delete(account: Account, machine_id: str, has: _Belongings, *, alive: bool = False) -> None:
    """Delete what is marked: volumes, the machine where it is ``alive``, and once it is gone its interfaces."""
    for volume_id in has.volumes:
        awaited(account, partial(unused, account, volume_id), f"volume {volume_id}")
        with contextlib.suppress(NotFound):
            ask(account, "delete_volume", VolumeId=volume_id)
    if alive:
        with contextlib.suppress(NotFound):
            ask(account, "terminate_instances", InstanceIds=[machine_id])
    await_end(account, [machine_id])
    for nic_id in has.interfaces:
        with contextlib.suppress(NotFound):
            ask(account, "delete_network_interface", NetworkInterfaceId=nic_id)


def _interfaces(account: Account, name: str, values: list[str]) -> Iterator[dict[str, Any]]:
    """Yield interfaces by a filter; none without values."""
    wanted = [{"Name": name, "Values": values}]
    for page in account.pages("ec2", "describe_network_interfaces", Filters=wanted) if values else ():
        yield from page["NetworkInterfaces"]


def _others(volume: Mapping[str, Any], machine_id: str) -> list[str]:
    """Return the machines besides this one that have a volume."""
    return [one["InstanceId"] for one in volume.get("Attachments") or () if one["InstanceId"] != machine_id]


def _volume(volume: Mapping[str, Any]) -> str:
    return f"volume {volume['VolumeId']} ({volume['Size']} GiB)"


def _site(account: Account) -> str:
    return tags.site_of(account.settings.bucket, account.settings.prefix)
