"""Volumes that drafts are written to: made of a point or empty, attached to the machine that this node runs on."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from farshore.errors import FarshoreError, NoSpace, NotFound, Permanent, Retry
from farshore.platforms.aws import inventory, tags
from farshore.platforms.aws.account import Account, wait_for
from farshore.platforms.aws.machines import ask, attach, awaited, detach, volume_at
from farshore.platforms.aws.types import VOLUMES, Types

log = logging.getLogger(__name__)

_VOLUME: Final = "volume"
#: Linux finds NVMe volumes by their serial number, which is the volume's id; the link in the settings' ``devices`` is
#: made by udev.
#: https://docs.aws.amazon.com/ebs/latest/userguide/identify-nvme-ebs-device.html
_LINK: Final = "nvme-Amazon_Elastic_Block_Store_"
#: On Nitro, the id of the instance that this system is.
_ASSET_TAG: Final = Path("/sys/devices/virtual/dmi/id/board_asset_tag")
#: Places that EC2 allows for data volumes under every virtualisation; on Nitro they name nothing that the system sees.
_PLACES: Final = tuple(
    [f"/dev/sd{last}" for last in "fghijklmnop"]
    + [f"/dev/xvd{first}{last}" for first in "bc" for last in "abcdefghijklmnopqrstuvwxyz"]
)


class Volumes:
    """The volumes of drafts that this node has, of one site."""

    def __init__(self, account: Account, site: str) -> None:
        self._account = account
        self._site = site
        self._devices = Path(account.settings.devices)
        self._node = account.settings.instance
        self._zone = ""

    @property
    def node(self) -> str:
        """The id of the instance that this node runs on.

        Raises:
            Permanent: it runs on none.
        """
        if not self._node:
            with contextlib.suppress(OSError):
                self._node = _ASSET_TAG.read_text(encoding="ascii").strip()
            if not re.fullmatch(r"i-[0-9a-f]+", self._node):
                self._node = ""
                raise Permanent(
                    "this node does not run on an EC2 instance (of the Nitro system), so it has no volumes to write to",
                    code="node-not-in-ec2",
                    field="platform.instance",
                    hint="Run the node on an instance in the site's region, or set platform.target: ebs-direct.",
                )
        return self._node

    @property
    def _owner(self) -> str:
        """What volumes of this node are known by: its machine, and the folder with its journals."""
        return tags.value(f"{self.node}:{self._account.settings.scratch}")

    @property
    def zone(self) -> str:
        """The availability zone of this node, where its volumes have to be."""
        if not self._zone:
            raw = inventory.instance(self._account, self.node)
            self._zone = str(raw["Placement"]["AvailabilityZone"])
        return self._zone

    def room(self, types: Types) -> int:
        """Return how many drafts this node's machine has places for, those that it writes now among them."""
        raw = inventory.instance(self._account, self.node)
        kind = types.known([raw["InstanceType"]]).get(raw["InstanceType"])
        most = kind.volumes if kind is not None else VOLUMES
        if kind is None or kind.shares_places:
            most -= max(len(raw.get("NetworkInterfaces") or ()) - 1, 0)
        drafts = self.of_this_node()
        held = {item["Ebs"]["VolumeId"] for item in raw.get("BlockDeviceMappings") or () if "Ebs" in item}
        return max(min(most, len(_PLACES)) - len(held - drafts.keys()), 0)

    def make(self, gib: int, base: str | None, token: str, named: Mapping[str, str]) -> str:
        """Make a volume of a point, or an empty one; the same ``token`` finds the same one.

        Raises:
            NotFound: the point is gone.
        """
        key = self._account.settings.kms_key
        more: dict[str, Any] = {"SnapshotId": base} if base else {}
        if not base and key:  # what is made of a snapshot has that one's key
            more = {"Encrypted": True, "KmsKeyId": key}
        reply = ask(
            self._account,
            "create_volume",
            Size=gib,
            AvailabilityZone=self.zone,
            VolumeType="gp3",
            ClientToken=token,
            TagSpecifications=[
                {
                    "ResourceType": "volume",
                    "Tags": tags.tag_list({**named, tags.ROLE: _VOLUME, tags.NODE: self._owner}),
                }
            ],
            **more,
        )
        return str(reply["VolumeId"])

    def there(self, volume_id: str) -> bool:
        """Say whether a volume exists and can be used."""
        found = volume_at(self._account, volume_id)
        return found is not None and found["State"] in {"creating", "available", "in-use"}

    def attached(self, volume_id: str) -> Path:
        """Attach a volume to this node's machine and return its device; nothing to do where it is.

        Raises:
            NotFound: there is no such volume.
            NoSpace: the machine has as many volumes as it can have.
            Conflict: another machine has it.
            Retry: the device did not appear.
        """
        first = crc32(volume_id.encode()) % len(_PLACES)  # whoever attaches at the same time begins elsewhere
        taken: set[str] = set()
        while True:
            raw = inventory.instance(self._account, self.node)
            taken |= {item["DeviceName"] for item in raw.get("BlockDeviceMappings") or ()}
            place = next((one for one in (*_PLACES[first:], *_PLACES[:first]) if one not in taken), None)
            if place is None:
                raise self._full()
            try:
                attach(self._account, self.node, place, volume_id)
            except Permanent as error:
                if error.evidence.get("aws_code") == "AttachmentLimitExceeded":
                    raise self._full() from error
                if error.evidence.get("aws_code") != "InvalidParameterValue":
                    raise
                taken.add(place)  # somebody was quicker
                continue
            return self._device(volume_id)

    def _full(self) -> NoSpace:
        return NoSpace(
            f"machine {self.node} can have no more volumes",
            code="too-many-volumes",
            hint="Replicate fewer disks at once through this node, through several nodes, or set platform.target:"
            " ebs-direct.",
        )

    def _device(self, volume_id: str) -> Path:
        path = self._devices / (_LINK + volume_id.replace("-", ""))
        settings = self._account.settings

        def late() -> FarshoreError:
            return Retry(
                f"volume {volume_id} is attached to {self.node}, and {path} did not appear",
                code="device-missing",
                hint="Look whether udev runs, and whether the instance is of the Nitro system (NVMe).",
                volume_id=volume_id,
            )

        return wait_for(lambda: path if path.exists() else None, settings.poll_s, settings.power_s, late)

    def of_this_node(self) -> dict[str, str]:
        """Return the volumes that this node has made, with the drafts that they are of."""
        own = tags.filters(SITE=self._site, ROLE=_VOLUME, NODE=self._owner)
        return {
            one["VolumeId"]: tags.tag_map(one).get(tags.DRAFT, "")
            for one in inventory.volumes(self._account, own)
            if one["State"] != "deleting"
        }

    def remove_of(self, key: str) -> None:
        """Remove the volumes of a draft, but for those that another machine has."""
        for one in list(inventory.volumes(self._account, tags.filters(SITE=self._site, ROLE=_VOLUME, DRAFT=key))):
            self._remove(one)

    def remove_left(self, disk_key: str, known: set[str]) -> None:
        """Remove volumes of a disk that nobody will come back for: not of the drafts ``known`` to this node.

        That is what a node leaves whose scratch folder was lost, or whose machine has gone.
        """
        for one in list(inventory.volumes(self._account, tags.filters(SITE=self._site, ROLE=_VOLUME, DISK=disk_key))):
            marks = tags.tag_map(one)
            owner = marks.get(tags.NODE, "")
            if owner == self._owner:
                if marks.get(tags.DRAFT) in known:
                    continue
            elif not self._is_gone(owner.partition(":")[0]):
                continue
            log.info("volume %s of draft %s has no owner any more", one["VolumeId"], marks.get(tags.DRAFT))
            self._remove(one)

    def _is_gone(self, node: str) -> bool:
        try:
            inventory.instance(self._account, node)
        except NotFound:
            return True
        return False

    def _remove(self, volume: Mapping[str, Any]) -> None:
        volume_id = str(volume["VolumeId"])
        holders = {item["InstanceId"] for item in volume.get("Attachments") or ()}
        if volume["State"] == "deleting" or holders - {self.node}:
            return
        if volume["State"] == "creating":
            awaited(self._account, lambda: _made(self._account, volume_id), f"volume {volume_id}")
        if holders:
            detach(self._account, volume_id, self.node)
        with contextlib.suppress(NotFound):
            ask(self._account, "delete_volume", VolumeId=volume_id)


def _made(account: Account, volume_id: str) -> str | None:
    found = volume_at(account, volume_id)
    return volume_id if found is None or found["State"] != "creating" else None


def volumes_of(account: Account) -> Volumes:
    """Return the volumes that the node with these settings has."""
    return Volumes(account, tags.site_of(account.settings.bucket, account.settings.prefix))
