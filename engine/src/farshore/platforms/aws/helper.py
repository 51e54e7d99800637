"""A helper: an instance of the operator's that speaks to machines of a drill, from an interface in their network.

It stays in its own VPC, where its agent has its way to Systems Manager; a drill's network gets none. What it gets is an
interface of the helper, in a security group of its own, from which members of the network's group take connections.
An instance may have interfaces in several VPCs of its account and zone:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/scenarios-enis.html.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from farshore.errors import Conflict, FarshoreError, Forbidden, NoSpace, Permanent, Retry
from farshore.model.machine import Finding
from farshore.model.task import NetworkCreateParams
from farshore.platforms.aws import inventory, tags
from farshore.platforms.aws.account import Account, wait_for
from farshore.platforms.aws.commands import Commands
from farshore.platforms.aws.machines import ask, awaited, marks, ours
from farshore.platforms.contract import Answer

#: The role of what a drill's network has for a helper: its interface there, and the group that this is in.
ROLE: Final = "helper"
#: The value of ``platform.probe_helper`` that says: whoever has the tag.
TAGGED: Final = "tagged"
#: The kinds of probes that see something of a machine in a drill's network; with a helper, ports too.
ALONE: Final = ("console",)
WITH_HELPER: Final = (*ALONE, "tcp", "http")
#: The way of a command to the helper and back, beside the time that the port has.
_WAY_S: Final = 20.0
_EXCHANGE_S: Final = 5.0
#: Interfaces that instances have at most; which of them an instance of a type has, EC2 knows.
_PLACES: Final = 15
_TRIES: Final = 3
#: As root, whatever its output is; nothing here comes from a plan.
_LINE: Final = "exec python3 -c 'import sys,zlib,base64;exec(zlib.decompress(base64.b64decode(sys.argv.pop(1))))' {} {}"


def find(account: Account) -> dict[str, Any]:
    """Return the helper as EC2 describes it: it runs, in the site's zone.

    Raises:
        Permanent: there is none (``helper-not-found``), or it is not where, or what, it has to be.
    """
    settings = account.settings
    site = tags.site_of(settings.bucket, settings.prefix)
    wanted = [{"Name": "instance-id", "Values": [settings.probe_helper]}]
    if settings.probe_helper == TAGGED:
        wanted = [{"Name": f"tag:{tags.HELPER}", "Values": [site]}]
    known = sorted(inventory.instances(account, wanted), key=lambda one: str(one["InstanceId"]))
    here = [one for one in known if one["Placement"]["AvailabilityZone"] == settings.zone]
    running = [one for one in here if one["State"]["Name"] == "running"]
    if running and tags.tag_map(running[0]).get(tags.HELPER) == site:
        return running[0]
    if running:
        why = f"{running[0]['InstanceId']} does not have the tag {tags.HELPER} = {site}"
    elif here:
        why = f"{here[0]['InstanceId']} is {here[0]['State']['Name']}"
    elif known:
        why = f"{known[0]['InstanceId']} is not in the zone {settings.zone}"
    else:
        why = f"there is no instance {settings.probe_helper}"
    raise Permanent(
        f"the helper that platform.probe_helper names cannot be used: {why}",
        code="helper-not-found",
        field="platform.probe_helper",
        hint=f"Run a Linux instance in {settings.zone} that Systems Manager manages; tag it {tags.HELPER} = {site}.",
    )


def findings(account: Account) -> tuple[str, list[Finding]]:
    """Return who tries probes in isolated networks, empty where nobody can, and what there is to say about it."""
    if not account.settings.probe_helper:
        return "", []
    try:
        name = str(find(account)["InstanceId"])
        platform = Commands(account).managed(name).get("PlatformType")
        if platform != "Linux":
            raise Permanent(f"the helper {name} runs {platform}", code="helper-not-linux", hint="It has to be Linux.")
    except FarshoreError as error:
        return "", [_finding(error)]
    said = f"helper {name} speaks to ports of machines in drills; their networks admit it, and nothing else"
    return name, [Finding(code="probe-helper", severity="info", subject=name, message=said)]


def tried(account: Account) -> list[Finding]:
    """Return the same, having run something at the helper."""
    name, found = findings(account)
    if not name:
        return found
    try:
        said = _ran(account, name, {}, _WAY_S)
    except FarshoreError as error:
        return [_finding(error)]
    if not said.get("root"):
        return [_finding(Permanent(f"commands at helper {name} are not run by root", code="helper-unusable"))]
    return found


def _finding(error: FarshoreError) -> Finding:
    """Return why no helper can be used."""
    return Finding(
        code=error.code, severity="warning", subject="probe_helper", message=error.message, remedy=error.hint or ""
    )


# --- its place in a drill's network ------------------------------------------------------------------------------


def group_of(account: Account, tag: str, vpc: str) -> dict[str, Any] | None:
    """Return the security group of the helper's interface in a drill's VPC; None: it has no place there."""
    wanted = [*ours(account, tag), {"Name": "vpc-id", "Values": [vpc]}, _is_helpers()]
    pages = account.pages("ec2", "describe_security_groups", Filters=wanted)
    return next((item for page in pages for item in page["SecurityGroups"]), None)


def make_group(account: Account, spec: NetworkCreateParams, vpc: str) -> None:
    """Make the group of the helper's interface; one that is there already is found by whoever looks."""
    own = marks(account, spec.tag, **{tags.NAME: f"{spec.name} helper", tags.ROLE: ROLE})
    with contextlib.suppress(Conflict):
        ask(
            account,
            "create_security_group",
            GroupName=f"farshore-{spec.name}"[:248] + "-helper",
            Description="Farshore: who tries probes in a rehearsal, and is reached by nobody",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": own}],
        )


def make_interface(account: Account, spec: NetworkCreateParams, subnet: str, group: str) -> None:
    """Make the helper's interface, at an address that no machine of the run is to have. Nobody has it yet."""
    settings = account.settings
    taken = set(spec.hosts.values())
    usable = reversed(list(ipaddress.ip_network(spec.subnet).hosts())[3:])  # the first ones are the provider's
    address = next((str(one) for one in usable if str(one) not in taken), None)
    if address is None:
        raise NoSpace(f"the drill subnet {spec.subnet} has no address left for the helper", code="subnet-full")
    ask(
        account,
        "create_network_interface",
        SubnetId=subnet,
        Groups=[group],
        PrivateIpAddress=address,
        Description=f"Farshore: helper in {spec.name}",
        ClientToken=tags.token("helper", settings.bucket, settings.prefix, spec.tag, spec.name),
        TagSpecifications=[
            {"ResourceType": "network-interface", "Tags": marks(account, spec.tag, **{tags.ROLE: ROLE})}
        ],
    )


def leave(account: Account, interface: Mapping[str, Any]) -> None:
    """Take an interface off the helper, and wait until that is done; nothing to do where it is off it."""
    name = str(interface["NetworkInterfaceId"])

    def free() -> str | None:
        found = _interface(account, name)
        return name if found is None or found["Status"] == "available" else None

    if free() is None:
        attachment = str((interface.get("Attachment") or {}).get("AttachmentId", ""))
        with contextlib.suppress(Permanent):  # it goes already; the look below says
            ask(account, "detach_network_interface", AttachmentId=attachment)
    awaited(account, free, f"interface {name}")


def _is_helpers() -> dict[str, Any]:
    return {"Name": f"tag:{tags.ROLE}", "Values": [ROLE]}


def _interface(account: Account, name: str) -> dict[str, Any] | None:
    wanted = [{"Name": "network-interface-id", "Values": [name]}]
    return next(_interfaces(account, wanted), None)


def _interfaces(account: Account, wanted: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for page in account.pages("ec2", "describe_network_interfaces", Filters=wanted):
        yield from page["NetworkInterfaces"]


# --- who speaks --------------------------------------------------------------------------------------------------


class HelperReach:
    """Speaks to ports of machines in the isolated networks of one run. See :class:`farshore.platforms.contract.Reach`.

    Raises:
        Permanent: there is no helper, or it has no place there.
        Retry: it does not answer now.
    """

    def __init__(self, account: Account, tag: str) -> None:
        self._account = account
        interfaces = list(_interfaces(account, [*ours(account, tag), _is_helpers()]))
        if not interfaces:
            raise Permanent(
                "the drill's network has no place for a helper",
                code="helper-not-admitted",
                hint="Set platform.probe_helper in the file of each recovery node of the site.",
            )
        subnets = {str(one["SubnetId"]) for one in interfaces}
        reply = account.patiently("ec2", "describe_subnets", SubnetIds=sorted(subnets))
        ranges = {str(one["SubnetId"]): ipaddress.ip_network(one["CidrBlock"]) for one in reply["Subnets"]}
        self._places = [(ranges[str(one["SubnetId"])], self._joined(one)) for one in interfaces]
        self.where = " and ".join(sorted({str(one["Attachment"]["InstanceId"]) for _, one in self._places}))

    def exchange(
        self, address: str, port: int, send: bytes, until: bytes, limit_bytes: int, timeout_s: float
    ) -> Answer:
        """Have the helper connect, send and read."""
        at = ipaddress.ip_address(address)
        place = next((one for one in self._places if at in one[0]), None)
        if place is None:
            raise Permanent(f"{address} is in no network of the drill", code="address-outside", address=address)
        network, interface = place
        name = str(interface["NetworkInterfaceId"])
        wish = {
            "mac": interface["MacAddress"],
            "own": f"{interface['PrivateIpAddress']}/{network.prefixlen}",
            "namespace": f"fs-{name.removeprefix('eni-')}",
            "address": address,
            "port": port,
            "send": base64.b64encode(send).decode(),
            "until": base64.b64encode(until).decode(),
            "limit": limit_bytes,
            "seconds": min(timeout_s, _EXCHANGE_S),
        }
        return _answer(_ran(self._account, str(interface["Attachment"]["InstanceId"]), wish, timeout_s), limit_bytes)

    def _joined(self, interface: dict[str, Any]) -> dict[str, Any]:
        """Return the helper's interface once the helper has it; give it to the helper where nobody has."""
        account, name = self._account, str(interface["NetworkInterfaceId"])

        def look() -> dict[str, Any] | None:
            found = _interface(account, name) or {}
            attached = found.get("Attachment") or {}
            return found if attached.get("Status", "attached") == "attached" and attached.get("InstanceId") else None

        for left in reversed(range(_TRIES)):
            if look() is not None:
                break
            helper = find(account)
            taken = {int(one["Attachment"]["DeviceIndex"]) for one in helper["NetworkInterfaces"]}
            place = next((at for at in range(1, _PLACES) if at not in taken), _PLACES)
            machine_id = str(helper["InstanceId"])
            try:
                ask(
                    account,
                    "attach_network_interface",
                    NetworkInterfaceId=name,
                    InstanceId=machine_id,
                    DeviceIndex=place,
                )
                break
            except NoSpace as error:
                raise NoSpace(
                    f"helper {machine_id} has no room for an interface in the drill's network",
                    code="helper-full",
                    hint="Let other drills end, or make it of a larger type: each drill network takes an interface.",
                ) from error
            except Forbidden:
                raise
            except Permanent:  # another node has done it, or the place was taken meanwhile; the next look says
                if not left and look() is None:
                    raise

        def late() -> FarshoreError:
            return Retry(f"the helper does not have its interface {name} yet", code="helper-slow")

        return wait_for(look, account.settings.poll_s, account.settings.power_s, late)


def _ran(account: Account, machine_id: str, wish: Mapping[str, Any], within_s: float) -> dict[str, Any]:
    """Run the script of :mod:`~.probing` at the helper and return what it says.

    Raises:
        Retry: it said nothing, or not in time.
        Permanent: the helper lacks what the script needs.
    """
    code = Path(__file__).with_name("probing.py").read_bytes()
    given = (zlib.compress(code, 9), json.dumps(dict(wish)).encode())
    line = _LINE.format(*(base64.b64encode(part).decode() for part in given))
    ended = Commands(account).run(machine_id, "Linux", [line], within_s)
    if ended.exit_status == os.EX_OK:
        with contextlib.suppress(ValueError, IndexError):
            said: dict[str, Any] = json.loads(ended.output.strip().splitlines()[-1])
            if "not_ready" not in said:
                return said
            raise Retry(f"helper {machine_id} cannot speak there: {said['not_ready']}", code="helper-not-ready")
    raise Permanent(
        f"the helper {machine_id} could not run what it was given: {ended.errors.strip()[-300:]}",
        code="helper-unusable",
        hint="It needs python3 (3.6 or later) and ip of iproute2.",
        exit_status=ended.exit_status,
    )


def _answer(said: Mapping[str, Any], limit_bytes: int) -> Answer:
    """Return what the helper says that it has read: however little it is to be trusted, no more than was asked for."""
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(said["data"]), limit_bytes)
        missing = int(said.get("missing", 0))
        number = int(said.get("errno", 0))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise Permanent("the helper's answer is not one", code="helper-unusable", kind=type(error).__name__) from error
    if missing:
        return Answer(data, OSError(f"the answer was longer than Run Command hands back, {missing} bytes are missing"))
    if number:
        return Answer(data, OSError(number, str(said.get("error"))[:200]))
    return Answer(data)
