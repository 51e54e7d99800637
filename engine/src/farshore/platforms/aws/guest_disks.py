"""The disks of a machine that was made and never started, as files that read and write like raw disks.

They are read from the snapshots that the machine's volumes are made of, block by block as something is touched, and
written to a layer of ours (:mod:`farshore.platforms.aws.layer`). What is different at the end becomes a snapshot of its
own, a child of the point, and volumes made of children take the places of those made of points. No point is written, no
volume is attached to this node. docs/internals/aws.md, "Guests"; docs/adr/0020.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from farshore import durable
from farshore.errors import Conflict, FarshoreError, NotFound, Permanent, Retry
from farshore.platforms.aws import fence, inventory, swapping, tags
from farshore.platforms.aws.account import Account, patiently, wait_for
from farshore.platforms.aws.ebs import Ebs
from farshore.platforms.aws.layer import Layer
from farshore.platforms.aws.machines import available, awaited, make_volume
from farshore.platforms.aws.points import gone
from farshore.platforms.aws.reading import SnapshotReader, Tokens
from farshore.platforms.contract import OpenDisk
from farshore.platforms.nbd import files
from farshore.platforms.nbd.launcher import Launcher
from farshore.platforms.nbd.server import Server
from farshore.units import GIB

log = logging.getLogger(__name__)

#: Blocks that are written at once: enough that the pauses of a distant region overlap, few beside a cycle's.
_TOGETHER: Final = 8


@dataclass(frozen=True, slots=True)
class _Disk:
    """One disk of a machine, in its place. ``point``: the snapshot that its volume is made of."""

    disk_id: str
    place: str
    point: str
    size_gib: int
    boot: bool


class GuestDisks:
    """Opens disks of machines of one site."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._ebs = Ebs(account)
        self._layers = account.settings.folder / "layers"
        self._guests = account.settings.folder / "guests"

    @contextlib.contextmanager
    def opened(self, machine_id: str) -> Iterator[tuple[OpenDisk, ...]]:
        """Open a machine's disks for writing; at the end of the block what was written is in the machine.

        Nothing is changed where the block ends with an error. What an earlier attempt has left is removed first, or
        carried to its end where that was decided.

        Raises:
            Conflict: the machine is on, was started before, or has disks that are not ours.
            Permanent: the node cannot show disks as files, or what they hold cannot be read or kept.
        """
        machine = self._mine(machine_id)
        disks = self._disks(machine)
        self.close(machine_id)
        place = self._layers / machine_id
        durable.make_dir(place, 0o700)
        layers = {disk.disk_id: self._layer(disk, place) for disk in disks}
        try:
            with Server(place / "n", layers) as server:
                nodes = {disk.disk_id: _node(index, disk, server.path) for index, disk in enumerate(disks)}
                try:
                    with files.shown(self._launcher, self._guests, machine_id, nodes) as paths:
                        yield tuple(
                            OpenDisk(disk.disk_id, paths[disk.disk_id], disk.size_gib * GIB, "nvme", boot=disk.boot)
                            for disk in disks
                        )
                except Permanent as error:
                    raise (server.failure or error) from None
            if server.failure is not None:
                raise server.failure
            self._keep(machine, disks, layers)
        finally:
            for layer in layers.values():
                layer.close()
            self.close(machine_id)

    def close(self, machine_id: str) -> None:
        """Give a machine's disks back, also those that an earlier life of this node held."""
        if self._account.settings.folder.is_dir():
            files.close(self._launcher, self._guests, machine_id)
            shutil.rmtree(self._layers / machine_id, ignore_errors=True)

    def held(self) -> list[str]:
        """Return the machines whose disks this node holds, or an earlier life of it has held."""
        folders = [folder for folder in (self._layers, self._guests) if folder.is_dir()]
        return sorted({path.name for folder in folders for path in folder.iterdir()})

    # --- reading -------------------------------------------------------------------------------------------------

    @cached_property
    def _launcher(self) -> Launcher:
        return Launcher(self._account.settings.folder / "daemons")

    def _mine(self, machine_id: str) -> dict[str, Any]:
        """Return a machine that may be opened, with nothing of earlier attempts left."""
        raw = inventory.instance(self._account, machine_id)
        fence.refuse(raw)
        marks = tags.tag_map(raw)
        if inventory.power(raw) != "off":
            raise Conflict(f"machine {machine_id} is not off", code="machine-on", machine_id=machine_id)
        if tags.TAG not in marks or inventory.MADE not in marks:
            raise Conflict(
                f"machine {machine_id} was not made by a recovery, or not to the end",
                code="disk-not-ours",
                machine_id=machine_id,
            )
        return swapping.settle(self._account, self._ebs, machine_id)

    def _disks(self, machine: Mapping[str, Any]) -> list[_Disk]:
        """Return a machine's disks.

        Raises:
            Conflict: one is not ours, or the machine was started since it has it: then the volume has more than the
                snapshot that it was made of.
        """
        machine_id, root = machine["InstanceId"], machine.get("RootDeviceName")
        attached = [{"Name": "attachment.instance-id", "Values": [machine_id]}]
        found = []
        for volume in inventory.volumes(self._account, attached):
            marks = tags.tag_map(volume)
            at = next(item for item in volume["Attachments"] if item["InstanceId"] == machine_id)
            if marks.get(tags.TAG) != tags.tag_map(machine)[tags.TAG] or not volume.get("SnapshotId"):
                raise Conflict(
                    f"volume {volume['VolumeId']} at {at['Device']} of machine {machine_id} was not made of a point",
                    code="disk-not-ours",
                    machine_id=machine_id,
                    disk=at["Device"],
                )
            # Of an instance that was stopped and started EC2 tells the newest start.
            if machine["LaunchTime"] > at["AttachTime"]:
                raise Conflict(
                    f"machine {machine_id} was started since it was made: its guest is not what was recovered any more",
                    code="machine-was-started",
                    hint="Recover it again, or go on with what it is.",
                    machine_id=machine_id,
                )
            found.append(
                _Disk(
                    inventory.disk_id(at["Device"], volume),
                    at["Device"],
                    str(volume["SnapshotId"]),
                    int(volume["Size"]),
                    boot=at["Device"] == root,
                )
            )
        return sorted(found, key=lambda disk: (not disk.boot, disk.place))

    def _layer(self, disk: _Disk, place: Path) -> Layer:
        tokens = Tokens(self._ebs, disk.point)
        reader = SnapshotReader(self._ebs, disk.point, tokens, partial(gone, disk.point))
        return Layer(reader, disk.size_gib * GIB, place / f"{disk.disk_id}.blocks")

    # --- keeping what was written --------------------------------------------------------------------------------

    def _keep(self, machine: Mapping[str, Any], disks: Sequence[_Disk], layers: Mapping[str, Layer]) -> None:
        """Have the machine's volumes hold what was written: all of its disks, or none."""
        machine_id, swap = machine["InstanceId"], uuid4().hex
        try:
            made = self._volumes(tags.tag_map(machine), disks, layers, swap)
            # Somebody may have started it meanwhile, by other hands.
            now = inventory.instance(self._account, machine_id)
            if inventory.power(now) != "off" or now["LaunchTime"] != machine["LaunchTime"]:
                raise Conflict(f"machine {machine_id} was started", code="machine-on", machine_id=machine_id)
        except FarshoreError:
            with contextlib.suppress(FarshoreError):  # else the next attempt removes it, or the sweep
                swapping.settle(self._account, self._ebs, machine_id)
            raise
        if made:
            swapping.begin(self._account, machine_id, swap)
            swapping.settle(self._account, self._ebs, machine_id)

    def _volumes(
        self, marks: Mapping[str, str], disks: Sequence[_Disk], layers: Mapping[str, Layer], swap: str
    ) -> list[str]:
        """Return volumes of the disks that were changed, which can be attached; what they are made of is whole."""
        children = {disk: child for disk in disks if (child := self._child(marks, disk, layers[disk.disk_id], swap))}
        made = []
        for disk, child in children.items():
            self._await(child)
            token = tags.token("guest-volume", child)
            more = {inventory.SWAP: swap, inventory.PLACE: disk.place}
            made.append(
                make_volume(self._account, child, token, marks[tags.TAG], marks[inventory.NAME], disk.disk_id, **more)
            )
        for volume_id in made:
            awaited(self._account, partial(available, self._account, volume_id), f"volume {volume_id}")
        return made

    def _child(self, marks: Mapping[str, str], disk: _Disk, layer: Layer, swap: str) -> str | None:
        """Return a snapshot of what a disk has become, not whole yet; None where it is what it was."""
        count, whole, child = 0, sha256(), ""
        with ThreadPoolExecutor(_TOGETHER, thread_name_prefix="guest-blocks") as pool:
            turns = []
            for index, data, digest in layer.changed():
                child = child or self._begin(marks, disk, swap)
                turns.append(pool.submit(self._put, child, index, data, digest))
                whole.update(digest)
                count += 1
                if len(turns) > _TOGETHER:  # no more of them in memory
                    turns.pop(0).result()
            for turn in turns:
                turn.result()
        log.info("disk %s of %s: %d blocks read, %d changed", disk.disk_id, disk.point, layer.fetched, count)
        if not count:
            return None
        self._ebs.complete(child, count, whole.digest(), again=False)
        return child

    def _begin(self, marks: Mapping[str, str], disk: _Disk, swap: str) -> str:
        settings = self._account.settings
        named = {
            tags.SITE: tags.site_of(settings.bucket, settings.prefix),
            tags.TAG: marks[tags.TAG],
            tags.ROLE: inventory.GUEST,
            tags.BASE: disk.point,
            tags.NAME: f"{marks[inventory.NAME]} {disk.disk_id}",
            inventory.NAME: marks[inventory.NAME],
            inventory.DISK_ID: disk.disk_id,
        }
        return self._ebs.start(disk.size_gib, disk.point, tags.token("guest", swap, disk.disk_id), named)

    def _put(self, child: str, index: int, data: bytes, digest: bytes) -> None:
        def once() -> None:
            try:
                self._ebs.put(child, index, data, digest)
            except NotFound as error:  # it was just begun, and is not known everywhere
                raise Retry(f"snapshot {child} is not known yet", code="snapshot-unseen") from error

        patiently(once)

    def _await(self, child: str) -> None:
        """Return when a snapshot is whole.

        Raises:
            Permanent: EBS could not make it.
            Retry: it is not whole for as long as the settings allow.
        """
        settings = self._account.settings

        def look() -> bool | None:
            found = self._ebs.state(child)
            if found is not None and found.state == "error":
                raise Permanent(
                    f"the snapshot {child} with what was changed in the guest failed: {found.message}",
                    code="guest-snapshot-failed",
                    hint="See that the node's role may use the key of the checkpoint's snapshots.",
                    snapshot=child,
                )
            return True if found is not None and found.state == "completed" else None

        def late() -> FarshoreError:
            return Retry(
                f"the snapshot {child} with what was changed in the guest is pending after {settings.power_s:g} s",
                code="snapshot-pending",
                hint="EBS is slow at the moment; the step begins again when it is run again.",
                snapshot=child,
            )

        wait_for(look, settings.poll_s, settings.power_s, late)


def _node(index: int, disk: _Disk, socket: Path) -> dict[str, Any]:
    """Return the ``blockdev-add`` arguments of a disk that is served at ``socket``."""
    return {
        "driver": "nbd",
        "node-name": f"disk{index}",
        "server": {"type": "unix", "path": str(socket)},
        "export": disk.disk_id,
    }
