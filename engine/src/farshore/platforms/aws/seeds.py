"""The way back: what a disk of an old primary holds becomes the point that the first copy begins with.

EC2 takes a snapshot of the volume; nothing is read or sent for that, and the volume stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farshore.errors import Invalid, NotFound
from farshore.model.machine import MachineFacts
from farshore.platforms.aws import inventory
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.machines import volume_at
from farshore.platforms.aws.points import Points
from farshore.platforms.existing import OLD_DISK, refuse_larger


class Seeds:
    """Takes in disks of machines that rest. ``facts`` returns a machine by its id."""

    def __init__(self, account: Account, points: Points, facts: Callable[[str], MachineFacts]) -> None:
        self._account = account
        self._points = points
        self._facts = facts

    def adopt(self, disk_key: str, size_bytes: int, image: str, key: str) -> str:
        """Make a point of the disk of a machine that is fenced and off; see ``Platform``.

        Raises:
            NotFound: there is no such machine, or disk.
            Conflict: the machine is not fenced, or not off.
            Invalid: the volume is larger than the disk, or is not encrypted and has to be.
        """
        if not image.startswith(OLD_DISK):
            raise Invalid(
                f"a site in AWS takes in no image, {image!r} neither",
                code="seed-unsupported",
                field="seed",
                hint="Take `seed` out of the plan; disks of old primaries are taken in without it.",
            )
        machine_id, _, disk_id = image.removeprefix(OLD_DISK).partition("/")
        inventory.resting(inventory.instance(self._account, machine_id))
        volume = self._volume(machine_id, disk_id)
        refuse_larger(image, int(volume["Size"]) << 30, size_bytes)
        if self._account.settings.kms_key is not None and not volume.get("Encrypted"):
            raise Invalid(
                f"disk {disk_id} of {machine_id} is not encrypted, and nothing that grows on it would be",
                code="seed-plain",
                field="platform.kms_key",
                hint="It is copied whole, into snapshots that are encrypted.",
            )
        return self._points.adopt(str(volume["VolumeId"]), disk_key, size_bytes, key)

    def _volume(self, machine_id: str, disk_id: str) -> dict[str, Any]:
        for disk in self._facts(machine_id).disks:  # also the one that a fence has taken out of its place
            if disk.disk_id == disk_id and (found := volume_at(self._account, disk.path)) is not None:
                return found
        raise NotFound(f"machine {machine_id} has no disk {disk_id}", code="disk-unknown", machine_id=machine_id)
