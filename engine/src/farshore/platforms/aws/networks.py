"""Networks without a way out, and the proof of it.

An isolated network is a VPC of its own: it has no gateway, no peer, no endpoint and no resolver, so nothing but its own
subnet can be reached from it, whatever addresses it has. Its security group admits members of the same group only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from farshore.errors import Conflict, FarshoreError, Invalid, NotFound, Retry
from farshore.model.task import IsolationResult, NetworkCreateParams
from farshore.platforms.aws import helper, inventory, tags
from farshore.platforms.aws.account import Account, wait_for
from farshore.platforms.aws.machines import ask, marks, ours

_SUBNET: Final = re.compile(r"subnet-[0-9a-z]+")
#: What a VPC may be at most and at least; https://docs.aws.amazon.com/vpc/latest/userguide/vpc-cidr-blocks.html
_WIDEST, _NARROWEST = 16, 28
#: What may lead out of a VPC: operation, where it lists them, the filter by VPC, and states in which they are gone.
_WAYS_OUT: Final = (
    ("describe_internet_gateways", "InternetGateways", "attachment.vpc-id", "internet gateway"),
    ("describe_vpn_gateways", "VpnGateways", "attachment.vpc-id", "VPN gateway"),
    ("describe_nat_gateways", "NatGateways", "vpc-id", "NAT gateway"),
    ("describe_vpc_endpoints", "VpcEndpoints", "vpc-id", "endpoint"),
    ("describe_transit_gateway_vpc_attachments", "TransitGatewayVpcAttachments", "vpc-id", "transit gateway"),
    ("describe_vpc_peering_connections", "VpcPeeringConnections", "requester-vpc-info.vpc-id", "peering"),
    ("describe_vpc_peering_connections", "VpcPeeringConnections", "accepter-vpc-info.vpc-id", "peering"),
)
#: Reads of EC2 are behind by seconds: https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
_SEEN_S: Final = 60.0
_Rule = dict[str, Any]
_GONE: Final = frozenset({"deleted", "deleting", "detached", "rejected", "expired", "failed"})


class Networks:
    """Subnets that machines are plugged into."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def place(self, network: str, tag: str) -> tuple[str, tuple[str, ...]]:
        """Return the subnet and security groups for a network: a subnet's id or name, or an isolated one of ``tag``.

        Raises:
            NotFound: there is none.
            Conflict: several subnets have this name, or it is in another zone.
        """
        subnet = self._isolated(network, tag)
        if subnet is not None:
            group = self._group(tag, subnet["VpcId"])
            if group is None:
                raise Conflict(f"network {network!r} of {tag} is not whole", code="network-unfinished", network=network)
            return str(subnet["SubnetId"]), (str(group["GroupId"]),)
        by = "subnet-id" if _SUBNET.fullmatch(network) else f"tag:{tags.NAME}"
        found = self._all("describe_subnets", "Subnets", [{"Name": by, "Values": [network]}])
        zone = self._account.settings.zone
        here = [item for item in found if item.get("AvailabilityZone") == zone]
        if not found:
            raise NotFound(
                f"there is no subnet {network!r} in this account and region",
                code="network-not-found",
                hint="Name a subnet by its id, or by its tag Name, in the plan's networks.",
                network=network,
            )
        if len(here) != 1:
            raise Conflict(
                f"{len(here)} subnets of zone {zone} are called {network!r}",
                code="network-ambiguous" if here else "network-elsewhere",
                hint=f"Name one subnet of zone {zone}, where volumes and machines are made, by its id.",
                network=network,
            )
        return str(here[0]["SubnetId"]), self._account.settings.security_groups

    def create_isolated(self, spec: NetworkCreateParams) -> None:
        """Make a network without a way out; the same tag and name find it.

        Raises:
            Invalid: its addresses are more, or fewer, than a VPC has.
        """
        wanted = ipaddress.ip_network(spec.subnet)
        if not _WIDEST <= wanted.prefixlen <= _NARROWEST:
            raise Invalid(
                f"the drill subnet {spec.subnet} has a prefix of {wanted.prefixlen}; EC2 takes {_WIDEST} to"
                f" {_NARROWEST}",
                code="subnet-size",
                field="networks.drill.subnet",
                hint="Write a subnet between /16 and /28.",
            )
        own = marks(self._account, spec.tag, **{inventory.NETWORK: spec.name, tags.NAME: spec.name})

        def tagged(kind: str) -> list[dict[str, Any]]:
            return [{"ResourceType": kind, "Tags": own}]

        vpcs = self._all("describe_vpcs", "Vpcs", self._by_name(spec.tag, spec.name))
        vpc = min((str(item["VpcId"]) for item in vpcs), default="") or str(
            ask(self._account, "create_vpc", CidrBlock=spec.subnet, TagSpecifications=tagged("vpc"))["Vpc"]["VpcId"]
        )
        # The provider's resolver answers for the whole internet: names would be a way out.
        for attribute in ("EnableDnsHostnames", "EnableDnsSupport"):
            ask(self._account, "modify_vpc_attribute", VpcId=vpc, **{attribute: {"Value": False}})
        if self._group(spec.tag, vpc) is None:
            # Made by a try whose answer was lost, it exists already: the look below says. The same goes for the subnet.
            with contextlib.suppress(Conflict):
                ask(
                    self._account,
                    "create_security_group",
                    GroupName=f"farshore-{spec.name}"[:255],
                    Description="Farshore: machines of one rehearsal reach each other, and nothing else",
                    VpcId=vpc,
                    TagSpecifications=tagged("security-group"),
                )
        group = self._seen(lambda: self._group(spec.tag, vpc), f"the security group of {spec.name}")
        admitted = self._helpers_group(spec, vpc)
        self._close(group, _among(group["GroupId"]), _admitting(group["GroupId"], admitted))
        if self._isolated(spec.name, spec.tag) is None:
            with contextlib.suppress(Conflict):
                ask(
                    self._account,
                    "create_subnet",
                    VpcId=vpc,
                    CidrBlock=spec.subnet,
                    AvailabilityZone=self._account.settings.zone,
                    TagSpecifications=tagged("subnet"),
                )
            self._seen(lambda: self._isolated(spec.name, spec.tag), f"the subnet of {spec.name}")
        if admitted is not None and (subnet := self._isolated(spec.name, spec.tag)) is not None:
            helper.make_interface(self._account, spec, str(subnet["SubnetId"]), admitted)

    def _helpers_group(self, spec: NetworkCreateParams, vpc: str) -> str | None:
        """Return the security group of the helper's interface, which reaches the subnet and is reached by nobody.

        None: the settings name no helper.
        """
        if not self._account.settings.probe_helper:
            return None
        if helper.group_of(self._account, spec.tag, vpc) is None:
            helper.make_group(self._account, spec, vpc)
        found = self._seen(
            lambda: helper.group_of(self._account, spec.tag, vpc), f"the security group of the helper in {spec.name}"
        )
        self._close(found, [_to(spec.subnet)], [])
        return str(found["GroupId"])

    def _seen(self, look: Callable[[], dict[str, Any] | None], what: str) -> dict[str, Any]:
        """Return what was just made as soon as EC2 shows it: its reads are behind.

        Raises:
            Retry: it does not.
        """

        def late() -> FarshoreError:
            return Retry(
                f"{what} of a rehearsal was made, and EC2 does not show it",
                code="network-unseen",
                hint="Look at the VPCs of the region for one with another network of the same addresses.",
            )

        return wait_for(look, self._account.settings.poll_s, _SEEN_S, late)

    def _close(self, group: dict[str, Any], egress: Sequence[_Rule], ingress: Sequence[_Rule]) -> None:
        """Leave a security group with these rules only."""
        group_id = group["GroupId"]
        for key, kind, wanted in (("IpPermissionsEgress", "egress", egress), ("IpPermissions", "ingress", ingress)):
            rules = group.get(key) or []
            told = [_said(rule) for rule in wanted]
            if foreign := [rule for rule in rules if _said(rule) not in told]:
                with contextlib.suppress(NotFound):  # they are gone already
                    ask(self._account, f"revoke_security_group_{kind}", GroupId=group_id, IpPermissions=foreign)
            known = [_said(rule) for rule in rules]
            if missing := [rule for rule in wanted if _said(rule) not in known]:
                with contextlib.suppress(Conflict):
                    ask(self._account, f"authorize_security_group_{kind}", GroupId=group_id, IpPermissions=missing)

    def isolation(self, tag: str, networks: Sequence[str]) -> IsolationResult:
        """Read back that isolated networks lead nowhere. EC2 has no packet to try it with, and counts none.

        Raises:
            NotFound: one of them is not of ``tag``.
        """
        found = []
        for name in networks:
            subnet = self._isolated(name, tag)
            if subnet is None:
                raise NotFound(f"network {name!r} is not one of {tag}", code="network-not-found", network=name)
            found += [f"{name}: {why}" for why in self._ways_out(subnet, tag)]
        if found:
            return IsolationResult(proven=False, reason="; ".join(found))
        reason = "read back: a VPC without gateways, peers, endpoints, foreign routes and resolver, and one security"
        admits = " group for its members only"
        if self._account.settings.probe_helper:
            admits = " group for its members and the helper of the site, which is reached by nobody"
        return IsolationResult(proven=True, reason=reason + admits)

    def _ways_out(self, subnet: dict[str, Any], tag: str) -> Iterator[str]:
        vpc = str(subnet["VpcId"])
        for operation, key, by, what in _WAYS_OUT:
            for item in self._all(operation, key, [{"Name": by, "Values": [vpc]}]):
                state = item.get("State") or item.get("Status") or ""
                if (state.get("Code", "") if isinstance(state, dict) else str(state)).lower() not in _GONE:
                    yield f"the VPC has a {what}"
        for gateway in self._all("describe_egress_only_internet_gateways", "EgressOnlyInternetGateways", ()):
            if any(item.get("VpcId") == vpc for item in gateway.get("Attachments") or ()):
                yield "the VPC has an egress-only internet gateway"
        for table in self._all("describe_route_tables", "RouteTables", [{"Name": "vpc-id", "Values": [vpc]}]):
            for route in table.get("Routes") or ():
                if route.get("GatewayId") != "local":
                    yield f"a route leads to {route.get('DestinationCidrBlock') or 'elsewhere'}"
        reply = self._account.patiently("ec2", "describe_vpc_attribute", VpcId=vpc, Attribute="enableDnsSupport")
        if reply["EnableDnsSupport"].get("Value"):
            yield "the provider's resolver answers in the VPC"
        group = self._group(tag, vpc)
        if group is None:
            yield "its security group is gone"
            return
        group_id = str(group["GroupId"])
        helpers = helper.group_of(self._account, tag, vpc) if self._account.settings.probe_helper else None
        admitted = str(helpers["GroupId"]) if helpers is not None else None
        if not _is_closed(group, _among(group_id), _admitting(group_id, admitted)):
            yield "its security group admits others"
        if helpers is not None and not _is_closed(helpers, [_to(str(subnet["CidrBlock"]))], []):
            yield "the security group of the helper admits others"
        interfaces = [{"Name": "subnet-id", "Values": [subnet["SubnetId"]]}]
        for nic in self._all("describe_network_interfaces", "NetworkInterfaces", interfaces):
            is_helpers = helpers is not None and tags.tag_map({"Tags": nic.get("TagSet")}).get(tags.ROLE) == helper.ROLE
            if {item["GroupId"] for item in nic.get("Groups") or ()} != {admitted if is_helpers else group_id}:
                yield f"interface {nic['NetworkInterfaceId']} is in other security groups"
            if nic.get("Association"):
                yield f"interface {nic['NetworkInterfaceId']} has a public address"

    def _by_name(self, tag: str, name: str) -> list[dict[str, Any]]:
        return [*ours(self._account, tag), {"Name": f"tag:{inventory.NETWORK}", "Values": [tags.value(name)]}]

    def _isolated(self, name: str, tag: str) -> dict[str, Any] | None:
        return next(iter(self._all("describe_subnets", "Subnets", self._by_name(tag, name))), None)

    def _group(self, tag: str, vpc: str) -> dict[str, Any] | None:
        """Return the security group of machines that we made in a VPC."""
        wanted = [*ours(self._account, tag), {"Name": "vpc-id", "Values": [vpc]}]
        found = self._all("describe_security_groups", "SecurityGroups", wanted)
        return next((one for one in found if tags.ROLE not in tags.tag_map(one)), None)

    def _all(self, operation: str, key: str, filters: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        more = {"Filters": list(filters)} if filters else {}
        return [item for page in self._account.pages("ec2", operation, **more) for item in page[key]]


def _among(group_id: str) -> list[_Rule]:
    """Return the rules by which members of a group reach each other, and nobody else."""
    return [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}]


def _admitting(group_id: str, helpers: str | None) -> list[_Rule]:
    """Return the same, with connections from members of the helper's group."""
    tcp = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535}
    return [*_among(group_id), *([{**tcp, "UserIdGroupPairs": [{"GroupId": helpers}]}] if helpers else [])]


def _to(subnet: str) -> _Rule:
    """Return the rule that lets connections to a subnet out."""
    return {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535, "IpRanges": [{"CidrIp": subnet}]}


def _is_closed(group: _Rule, egress: Sequence[_Rule], ingress: Sequence[_Rule]) -> bool:
    """Say whether a security group has no rules but these."""
    every = ((group.get("IpPermissionsEgress") or (), egress), (group.get("IpPermissions") or (), ingress))
    return all({*map(_said, rules)} <= {*map(_said, wanted)} for rules, wanted in every)


def _said(rule: _Rule) -> tuple[Any, ...]:
    """Return what a rule says, however it is written."""
    protocol = str(rule["IpProtocol"])
    ports = () if protocol == "-1" else (rule.get("FromPort"), rule.get("ToPort"))
    kinds = (("UserIdGroupPairs", "GroupId"), ("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"))
    sides = [*kinds, ("PrefixListIds", "PrefixListId")]
    return (protocol, ports, *(frozenset(one.get(key) for one in rule.get(kind) or ()) for kind, key in sides))
