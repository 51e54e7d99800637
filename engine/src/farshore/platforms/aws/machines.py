"""Makes a machine of points, powered off.

EC2 has no way to make an instance without starting it. So that a recovered guest does not run before it should, what
is launched is a *shell*: an instance of an image of nothing. It is stopped, its empty root volume goes, and volumes
made of the points take their places (docs/adr/0017). Each step finds what an earlier try of it has done, by client
tokens and tags.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from farshore.errors import Conflict, FarshoreError, Forbidden, Invalid, NotFound, Permanent, Retry
from farshore.model.task import DiskSpec, MachineCreateParams, NicSpec
from farshore.platforms.aws import inventory, tags
from farshore.platforms.aws.account import Account, patiently, wait_for
from farshore.platforms.aws.types import ARCHITECTURES, BOOT_MODES, InstanceType, Types

log = logging.getLogger(__name__)

_ROOT: Final = "/dev/sda1"
#: Places for disks besides the root: those that EC2 recommends first, then the others.
_PLACES: Final = tuple(f"/dev/sd{letter}" for letter in "fghijklmnopbcdeqrstuvwxyz")
#: Names of disks that are EC2's own: such a disk keeps its place.
_OWN: Final = re.compile(r"(sd[a-z][0-9]{0,2}|xvd[a-z]{1,2}[0-9]{0,2})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_LAUNCHES: Final = 5


def ask(account: Account, operation: str, **params: Any) -> dict[str, Any]:
    """Call EC2, again and again where that may help; that a zone has no room is told at once.

    For calls that find what they did before.
    """

    def once() -> dict[str, Any] | Retry:
        try:
            return account.call("ec2", operation, **params)
        except Retry as error:
            if error.code == "no-capacity":
                return error
            raise

    found = patiently(once)
    if isinstance(found, FarshoreError):
        raise found
    return found


def marks(account: Account, spec_tag: str, name: str = "", **more: str) -> list[dict[str, str]]:
    """Return the tags of what is made for a run, and for one of its machines."""
    site = tags.site_of(account.settings.bucket, account.settings.prefix)
    given = {tags.SITE: site, tags.TAG: spec_tag} | ({inventory.NAME: name} if name else {})
    return tags.tag_list(given | more)


def ours(account: Account, spec_tag: str) -> list[dict[str, Any]]:
    """Return the filters that find what was made for a run."""
    site = tags.site_of(account.settings.bucket, account.settings.prefix)
    return tags.filters(SITE=site, TAG=spec_tag)


def named(account: Account, spec_tag: str, name: str) -> list[dict[str, Any]]:
    """Return the filters that find what was made for one machine of a run."""
    return [*ours(account, spec_tag), {"Name": f"tag:{inventory.NAME}", "Values": [tags.value(name)]}]


class Maker:
    """Makes machines. ``place`` tells subnet and security groups by a network's name and a run's tag."""

    def __init__(
        self, account: Account, types: Types, place: Callable[[str, str], tuple[str, tuple[str, ...]]]
    ) -> None:
        self._account = account
        self._types = types
        self._place = place

    def create(self, spec: MachineCreateParams) -> str:
        """Make a machine, powered off; the same tag and name find it.

        Raises:
            NotFound: a point, network or instance type does not exist.
            Conflict: the name is taken by a machine that is not this run's.
            Permanent: no type fits, or the machine has too many disks, or no interface.
        """
        for text in (spec.name, spec.tag):
            if not _NAME.fullmatch(text) or ".." in text:
                raise Invalid(
                    f"{text!r} cannot be a name here", field="name", hint="Use letters, digits, dots and dashes."
                )
        found = self._existing(spec)
        if found is not None and inventory.MADE in tags.tag_map(found):
            return str(found["InstanceId"])
        if not spec.nics:
            raise Permanent(
                f"{spec.name} has no network interface, and cannot run on EC2",
                code="no-interfaces",
                hint="Give it one at the source, and map its network in the plan.",
            )
        kind = self._kind(spec)
        image, root = self._shell(spec)
        places = devices(spec, root)
        nics = [self._interface(spec, index, nic) for index, nic in enumerate(spec.nics)]
        volumes = {places[disk.disk_id]: self._volume(spec, disk) for disk in spec.disks}
        machine_id = str(found["InstanceId"]) if found is not None else self._launch(spec, kind, image, nics)
        self._empty(spec, machine_id, volumes.values())
        for device, volume_id in volumes.items():
            attach(self._account, machine_id, device, volume_id)
        ask(self._account, "create_tags", Resources=[machine_id], Tags=tags.tag_list({inventory.MADE: "yes"}))

        def whole() -> str | None:
            return machine_id if inventory.MADE in tags.tag_map(inventory.instance(self._account, machine_id)) else None

        return self._wait(whole, f"machine {machine_id}")  # whoever goes on with it may look at once

    def _existing(self, spec: MachineCreateParams) -> dict[str, Any] | None:
        """Return the machine that an earlier try began; refuse a name that is another's."""
        names = [{"Name": f"tag:{tags.NAME}", "Values": [spec.name]}]
        for other in inventory.instances(self._account, names):
            known = tags.tag_map(other)
            if known.get(tags.TAG) == spec.tag:
                continue
            if other["InstanceId"] == spec.replaces:
                self._give_up_name(other, spec.epoch)
                continue
            raise Conflict(
                f"a machine called {spec.name!r} exists already",
                code="machine-exists",
                hint="Remove or rename it.",
                machine_id=other["InstanceId"],
            )
        return next(inventory.instances(self._account, named(self._account, spec.tag, spec.name)), None)

    def _give_up_name(self, old: Mapping[str, Any], epoch: int) -> None:
        known = tags.tag_map(inventory.resting(old))
        name = f"{known[tags.NAME]}-old-{epoch}"
        ask(self._account, "create_tags", Resources=[old["InstanceId"]], Tags=tags.tag_list({tags.NAME: name}))

    def _kind(self, spec: MachineCreateParams) -> InstanceType:
        home = spec.purpose == "failback"
        same = (spec.cpus, spec.memory_bytes) == (spec.facts.cpus, spec.facts.memory_bytes)
        return self._types.choose(
            cpus=spec.cpus,
            memory_bytes=spec.memory_bytes,
            architecture=spec.facts.architecture,
            firmware=spec.facts.firmware,
            interfaces=len(spec.nics),
            wanted="" if home else spec.instance_type,
            before=spec.instance_type if home else spec.facts.tags.get("instance_type", "") if same else "",
        )

    # --- the shell -----------------------------------------------------------------------------------------------

    def _shell(self, spec: MachineCreateParams) -> tuple[str, str]:
        """Return the image that is launched, and the name of its root device."""
        licensed = self._account.settings.licence_images.get(spec.facts.tags.get("platform_details", ""))
        if licensed is not None:
            found = self._account.patiently("ec2", "describe_images", ImageIds=[licensed])["Images"]
            return licensed, str(found[0]["RootDeviceName"])
        boot = boot_disk(spec).disk_id
        root = f"/dev/{boot}" if _OWN.fullmatch(boot) else _ROOT
        architecture = ARCHITECTURES.get(spec.facts.architecture, spec.facts.architecture)
        mode = BOOT_MODES[spec.facts.firmware]
        name = f"farshore-{tags.token(spec.tag, architecture, mode, root)}"
        if (image := self._image(name)) is None:
            blank = self._blank(spec.tag)
            with contextlib.suppress(Conflict):  # somebody else has just made it; the look below says
                ask(
                    self._account,
                    "register_image",
                    Name=name,
                    Description="Farshore: nothing; machines are launched from it and get their disks afterwards",
                    Architecture=architecture,
                    BootMode=mode,
                    EnaSupport=True,
                    VirtualizationType="hvm",
                    RootDeviceName=root,
                    BlockDeviceMappings=[
                        {"DeviceName": root, "Ebs": {"SnapshotId": blank, "DeleteOnTermination": True}}
                    ],
                    TagSpecifications=[
                        {
                            "ResourceType": "image",
                            "Tags": marks(self._account, spec.tag, **{tags.ROLE: inventory.SHELL}),
                        }
                    ],
                )
            image = self._wait(lambda: self._image(name), f"the image {name}")
        return image, root

    def _image(self, name: str) -> str | None:
        found = self._account.patiently(
            "ec2", "describe_images", Owners=["self"], Filters=[{"Name": "name", "Values": [name]}]
        )["Images"]
        return next((str(one["ImageId"]) for one in found if one.get("State", "available") == "available"), None)

    def _blank(self, tag: str) -> str:
        """Return a snapshot of 1 GiB of nothing."""
        account = self._account
        blank = str(
            account.patiently(
                "ebs",
                "start_snapshot",
                VolumeSize=1,
                ClientToken=tags.token("blank", account.settings.bucket, account.settings.prefix, tag),
                Timeout=60,
                Description="Farshore: nothing",
                Tags=marks(account, tag, **{tags.ROLE: inventory.SHELL}),
            )["SnapshotId"]
        )
        try:
            account.patiently("ebs", "complete_snapshot", SnapshotId=blank, ChangedBlocksCount=0)
        except Forbidden:
            raise
        except Permanent as error:  # most likely completed before; the look below says
            log.info("snapshot %s: %s", blank, error)
        self._wait(lambda: self._complete(blank), f"the snapshot {blank}")
        return blank

    def _complete(self, snapshot: str) -> str | None:
        try:
            found = self._account.patiently("ec2", "describe_snapshots", SnapshotIds=[snapshot])["Snapshots"]
        except NotFound:  # it was begun a moment ago
            return None
        return snapshot if found and found[0]["State"] == "completed" else None

    def _launch(self, spec: MachineCreateParams, kind: InstanceType, image: str, nics: Sequence[str]) -> str:
        """Launch the shell and return its id."""
        settings = self._account.settings
        more: dict[str, Any] = {}
        if spec.purpose == "drill":
            # Nothing in a rehearsal may get at credentials or names of the real account.
            more["MetadataOptions"] = {"HttpEndpoint": "disabled"}
        else:
            if settings.key_pair:
                more["KeyName"] = settings.key_pair
            if settings.instance_profile:
                more["IamInstanceProfile"] = {"Name": settings.instance_profile}
        own = marks(self._account, spec.tag, spec.name, **{tags.NAME: spec.name})
        shell = marks(self._account, spec.tag, spec.name, **{tags.ROLE: inventory.SHELL})
        for number in range(_LAUNCHES):
            reply = ask(
                self._account,
                "run_instances",
                ImageId=image,
                InstanceType=kind.name,
                MinCount=1,
                MaxCount=1,
                ClientToken=tags.token("launch", settings.bucket, settings.prefix, spec.tag, spec.name, str(number)),
                InstanceInitiatedShutdownBehavior="stop",
                NetworkInterfaces=[{"DeviceIndex": index, "NetworkInterfaceId": nic} for index, nic in enumerate(nics)],
                TagSpecifications=[
                    {"ResourceType": "instance", "Tags": own},
                    {"ResourceType": "volume", "Tags": shell},
                ],
                **more,
            )
            machine_id = str(reply["Instances"][0]["InstanceId"])
            with contextlib.suppress(NotFound):  # a token finds one that was terminated too
                inventory.instance(self._account, machine_id)
                return machine_id
        raise Retry(f"EC2 ends {spec.name} as soon as it was launched", code="launch-ended", machine_id=machine_id)

    def _empty(self, spec: MachineCreateParams, machine_id: str, own: Collection[str]) -> None:
        """Stop the shell and take the volumes away that it was launched with: all but its ``own``."""
        account = self._account
        if self._wait(lambda: settled(account, machine_id), f"machine {machine_id}") == "running":
            ask(account, "stop_instances", InstanceIds=[machine_id], Force=True, SkipOsShutdown=True)
            self._wait(lambda: settled(account, machine_id, {"stopped"}), f"machine {machine_id}")
        shells = [*named(account, spec.tag, spec.name), {"Name": f"tag:{tags.ROLE}", "Values": [inventory.SHELL]}]
        found = {str(volume["VolumeId"]) for volume in inventory.volumes(account, shells)}
        # A list by tags may not have them yet; the machine itself names what is in its places.
        places = inventory.instance(account, machine_id).get("BlockDeviceMappings") or ()
        found |= {str(item["Ebs"]["VolumeId"]) for item in places if "Ebs" in item} - set(own)
        for volume_id in sorted(found):
            detach(account, volume_id, machine_id)
            with contextlib.suppress(NotFound):
                ask(account, "delete_volume", VolumeId=volume_id)

    # --- what it gets --------------------------------------------------------------------------------------------

    def _interface(self, spec: MachineCreateParams, index: int, nic: NicSpec) -> str:
        """Return an interface in the network that the plan names, with the address that it names."""
        settings = self._account.settings
        subnet, groups = self._place(nic.network, spec.tag)
        token = tags.token("interface", settings.bucket, settings.prefix, spec.tag, spec.name, str(index))
        reply = ask(
            self._account,
            "create_network_interface",
            SubnetId=subnet,
            Description=f"Farshore: {spec.name}",
            ClientToken=token,
            TagSpecifications=[
                {
                    "ResourceType": "network-interface",
                    # EC2 chooses hardware addresses; what the guest knows is noted beside it.
                    "Tags": marks(
                        self._account, spec.tag, spec.name, **{inventory.SOURCE_MAC: nic.source_mac or nic.mac}
                    ),
                }
            ],
            **({"Groups": list(groups)} if groups else {}),
            **({"PrivateIpAddress": nic.address} if nic.address else {}),
        )
        return str(reply["NetworkInterface"]["NetworkInterfaceId"])

    def _volume(self, spec: MachineCreateParams, disk: DiskSpec) -> str:
        """Return a volume made of a point."""
        settings = self._account.settings
        token = tags.token("volume", settings.bucket, settings.prefix, spec.tag, spec.name, disk.disk_id)
        return make_volume(self._account, disk.point, token, spec.tag, spec.name, disk.disk_id)

    def _wait(self, look: Callable[[], str | None], what: str) -> str:
        return awaited(self._account, look, what)


def make_volume(
    account: Account, snapshot: str, token: str, spec_tag: str, name: str, disk_id: str, **more: str
) -> str:
    """Return a volume of a run's machine, made of a snapshot; the same ``token`` finds it. ``more``: further tags."""
    marked = {inventory.DISK_ID: disk_id, tags.NAME: f"{name} {disk_id}", **more}
    reply = ask(
        account,
        "create_volume",
        SnapshotId=snapshot,
        AvailabilityZone=account.settings.zone,
        VolumeType="gp3",
        ClientToken=token,
        TagSpecifications=[{"ResourceType": "volume", "Tags": marks(account, spec_tag, name, **marked)}],
    )
    return str(reply["VolumeId"])


def settled(account: Account, machine_id: str, wanted: Collection[str] = ("running", "stopped")) -> str | None:
    """Return an instance's state if it is one of ``wanted``."""
    state = str(inventory.instance(account, machine_id)["State"]["Name"])
    return state if state in wanted else None


def awaited(account: Account, look: Callable[[], str | None], what: str) -> str:
    """Return what ``look`` returns as soon as it returns something.

    Raises:
        Retry: it did not, for as long as the settings allow.
    """
    settings = account.settings

    def late() -> FarshoreError:
        return Retry(
            f"{what} is not where it should be after {settings.power_s:g} s",
            code="provider-slow",
            hint="Look at it in the console; the step goes on from there when it is run again.",
        )

    return wait_for(look, settings.poll_s, settings.power_s, late)


def volume_at(account: Account, volume_id: str) -> dict[str, Any] | None:
    """Return a volume as EC2 describes it now; None if there is none."""
    return next(inventory.volumes(account, [{"Name": "volume-id", "Values": [volume_id]}]), None)


def available(account: Account, volume_id: str) -> str | None:
    """Return a volume's id once it can be attached.

    Raises:
        NotFound: there is no such volume.
        Permanent: EC2 could not make it.
    """
    return volume_id if _sound(account, volume_id)["State"] == "available" else None


def unused(account: Account, volume_id: str) -> str | None:
    """Return a volume's id once nothing keeps it from being deleted, also where it is gone."""
    volume = volume_at(account, volume_id)
    return volume_id if volume is None or volume["State"] in {"available", "error"} else None


def _sound(account: Account, volume_id: str) -> dict[str, Any]:
    volume = volume_at(account, volume_id)
    if volume is None:
        raise NotFound(f"volume {volume_id} is gone", code="volume-not-found", volume_id=volume_id)
    if volume["State"] == "error":
        raise Permanent(
            f"EC2 could not make volume {volume_id}",
            code="volume-error",
            hint="Its snapshot's KMS key has to be usable by the node's role.",
            volume_id=volume_id,
        )
    return volume


def detach(account: Account, volume_id: str, machine_id: str) -> None:
    """Take a volume off a machine that is off, and wait until that is done; nothing to do where it is off it."""

    def free() -> str | None:
        volume = volume_at(account, volume_id)
        return volume_id if volume is None or volume["State"] == "available" else None

    volume = volume_at(account, volume_id)
    if volume is None or any(item.get("State") != "detaching" for item in volume.get("Attachments") or ()):
        with contextlib.suppress(Conflict, NotFound):  # it is gone, or goes already; the look below says
            ask(account, "detach_volume", VolumeId=volume_id, InstanceId=machine_id)
    awaited(account, free, f"volume {volume_id}")


def attach(account: Account, machine_id: str, device: str, volume_id: str) -> None:
    """Put a volume into its place, and wait until it is there; nothing to do where it is.

    Raises:
        NotFound: there is no such volume.
        Conflict: another machine has it, or the place is taken.
    """

    def look(*, free: bool) -> str | None:
        volume = _sound(account, volume_id)
        for item in volume.get("Attachments") or ():
            if item["InstanceId"] == machine_id and item["State"] in {"attached", "attaching"}:
                return "attached" if item["State"] == "attached" else None
            if item["State"] == "attached":
                raise Conflict(
                    f"volume {volume_id} is attached to {item['InstanceId']}",
                    code="volume-elsewhere",
                    hint="Detach it there, then run the step again.",
                    volume_id=volume_id,
                )
        return "available" if volume["State"] == "available" and free else None

    if awaited(account, lambda: look(free=True), f"volume {volume_id}") != "attached":
        try:
            ask(account, "attach_volume", VolumeId=volume_id, InstanceId=machine_id, Device=device)
        except Conflict:
            # Done by a try whose answer was lost, or the place is another volume's.
            if look(free=True) == "available":
                raise
        awaited(account, lambda: look(free=False), f"volume {volume_id}")


def boot_disk(spec: MachineCreateParams) -> DiskSpec:
    """Return the disk that a machine boots from: the one that is said to, else the first.

    Raises:
        Permanent: it has none.
    """
    boots = {disk.disk_id for disk in spec.facts.disks if disk.boot}
    if not spec.disks:
        raise Permanent(f"{spec.name} has no disk, and cannot run on EC2", code="no-disks")
    return next((disk for disk in spec.disks if disk.disk_id in boots), spec.disks[0])


def devices(spec: MachineCreateParams, root: str) -> dict[str, str]:
    """Return the place of each disk: the root for the one that boots, their own for those that came from EC2.

    Raises:
        Permanent: there are more disks than places.
    """
    boot = boot_disk(spec).disk_id
    given = {boot: root}
    others = [disk.disk_id for disk in spec.disks if disk.disk_id != boot]
    for name in others:
        if _OWN.fullmatch(name) and f"/dev/{name}" != root:
            given[name] = f"/dev/{name}"
    # A place that differs by the first letters only, or is a part of a taken one, is the same to some drivers.
    taken = {_letter(device) for device in given.values()}
    free = iter([place for place in _PLACES if _letter(place) not in taken])
    for name in others:
        if name not in given:
            place = next(free, None)
            if place is None:
                raise Permanent(
                    f"{spec.name} has {len(spec.disks)} disks, more than EC2 has places for",
                    code="too-many-disks",
                    hint="Leave disks out of the plan, or join them in the guest.",
                )
            given[name] = place
    return {disk.disk_id: given[disk.disk_id] for disk in spec.disks}


def _letter(device: str) -> str:
    return device.removeprefix("/dev/").removeprefix("xvd").removeprefix("sd").rstrip("0123456789")
