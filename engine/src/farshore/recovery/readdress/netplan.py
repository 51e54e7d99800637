"""Netplan's files, and cloud-init's ``network-config`` in its versions 1 and 2, which look alike.

They are YAML: what is changed is written anew, without the comments that it had behind its first lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Interface
from typing import Any

import yaml

from farshore.recovery.readdress.interface import Found, Target, address, swapped

_KINDS = ("ethernets", "bonds", "bridges", "vlans", "wifis")
_DEFAULT = frozenset({"default", "0.0.0.0/0"})


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def _network(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        return {}
    inner = document.get("network", document)
    return inner if isinstance(inner, dict) else {}


def _definitions(network: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the interfaces of version 2."""
    for kind in _KINDS:
        group = network.get(kind)
        for name, one in group.items() if isinstance(group, dict) else ():
            if isinstance(one, dict):
                yield str(one.get("set-name") or name), one


def _physical(network: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the interfaces of version 1."""
    config = network.get("config")
    for one in config if isinstance(config, list) else ():
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            yield one["name"], one


def _subnets(one: dict[str, Any]) -> list[dict[str, Any]]:
    subnets = one.get("subnets")
    found = [item for item in subnets if isinstance(item, dict)] if isinstance(subnets, list) else []
    return [item for item in found if item.get("type") in {"static", "static4"} and _of(item)]


def _of(subnet: dict[str, Any]) -> IPv4Interface | None:
    return address(str(subnet.get("address", "")), str(subnet.get("netmask") or subnet.get("prefix") or ""))


def _written(item: Any) -> str:
    return str(next(iter(item), "")) if isinstance(item, dict) else str(item)


def _listed(one: dict[str, Any]) -> list[Any]:
    found = one.get("addresses")
    return found if isinstance(found, list) else []


def find(text: str, _name: str = "") -> list[Found]:
    """Return the interfaces."""
    network = _network(_read(text))
    found = []
    for name, one in _definitions(network):
        has = [parsed for item in _listed(one) if (parsed := address(_written(item)))]
        match = one.get("match")
        mac = str((match.get("macaddress") if isinstance(match, dict) else None) or one.get("macaddress") or "")
        found.append(Found(name, mac.lower(), tuple(has)))
    for name, one in _physical(network):
        has = [parsed for item in _subnets(one) if (parsed := _of(item))]
        found.append(Found(name, str(one.get("mac_address") or "").lower(), tuple(has)))
    return found


def rewrite(text: str, _name: str, targets: Mapping[str, Target], macs: Mapping[str, str]) -> str:
    """Return the file readdressed; one in which nothing has to change is left as it is, to the last letter."""
    document = _read(text)
    network = _network(document)
    before = yaml.safe_dump(document)
    for called, one in _definitions(network):
        match = one.get("match")
        for place in (one, match if isinstance(match, dict) else {}):
            if isinstance(place.get("macaddress"), str):
                place["macaddress"] = swapped(place["macaddress"], macs)
        target = targets.get(called)
        positions = [index for index, item in enumerate(_listed(one)) if address(_written(item))]
        if target is not None and positions:
            _second(one, positions[0], target)
    for called, one in _physical(network):
        if isinstance(one.get("mac_address"), str):
            one["mac_address"] = swapped(one["mac_address"], macs)
        target = targets.get(called)
        subnets = _subnets(one)
        if target is not None and subnets:
            _first(subnets[0], target)
    after = yaml.safe_dump(document, sort_keys=False)
    if yaml.safe_dump(document) == before:
        return text
    head = [line for line in text.split("\n") if line.startswith("#")] if text.startswith("#") else []
    return "\n".join([*head, after])


def _second(one: dict[str, Any], position: int, target: Target) -> None:
    one["addresses"][position] = str(target.address)
    one.pop("gateway4", None)
    routes = one.get("routes")
    kept = [item for item in routes if not _default(item)] if isinstance(routes, list) else []
    if target.gateway:
        kept.insert(0, {"to": "default", "via": str(target.gateway)})
    one.pop("routes", None)
    if kept:
        one["routes"] = kept
    if target.dns:
        servers = one.get("nameservers")
        rest = servers if isinstance(servers, dict) else {}
        one["nameservers"] = {**rest, "addresses": [str(server) for server in target.dns]}


def _default(route: Any) -> bool:
    return isinstance(route, dict) and str(route.get("to")) in _DEFAULT


def _first(subnet: dict[str, Any], target: Target) -> None:
    subnet["address"] = str(target.address)
    for derived in ("netmask", "prefix", "broadcast", "gateway"):
        subnet.pop(derived, None)
    if target.gateway:
        subnet["gateway"] = str(target.gateway)
    if target.dns:
        subnet["dns_nameservers"] = [str(server) for server in target.dns]
