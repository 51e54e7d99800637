"""What is done to a guest, from the plan and from what is made of its machine."""

from __future__ import annotations

from typing import Any

import pytest
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.guest import MachinePrepareParams, stopping
from farshore.model.machine import DiskFacts, Finding, MachineFacts, NicFacts
from farshore.model.plan import Plan, Purpose
from farshore.model.task import MachineCreateParams
from farshore.recovery import preview
from farshore.recovery.preview import Choice
from farshore.recovery.readdress.preparation import preparation
from pydantic import ValidationError

ID = "6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c22"
MAC = "52:54:00:aa:bb:01"
THERE = {"subnet": "10.9.0.0/16", "gateway": "10.9.0.1", "dns": ["10.9.0.53"]}
ADDRESSES = {"drill": "10.1.0.9", "failover": "10.9.0.11"}


def plan(guest: dict[str, Any] | None = None, network: dict[str, Any] | None = None, **recovery: Any) -> Plan:
    lan = {"source": "lan", "drill": {"subnet": "10.1.0.0/24"}, "failover": "dmz", "guest": network or {}}
    return Plan.model_validate(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "machines": [{"name": "web", "recovery": recovery, "guest": guest or {}}],
            "networks": [lan],
        }
    )


def made(of: Plan, purpose: Purpose) -> MachineCreateParams:
    facts = MachineFacts(
        machine_id=ID,
        name="web",
        disks=(DiskFacts(disk_id="vda", size_bytes=10, boot=True, bus="scsi"),),
        nics=(NicFacts(mac=MAC, network="lan", addresses=("10.5.0.7",)),),
    )
    common = {"checkpoint_id": "cp", "group_id": "g", "plan": "shop", "plan_revision": 1, "catalog_id": "c"}
    numbers = {"generation": 1, "epoch": 1, "term": 1, "sequence": 1, "ordered_at": 0, "taken_at": 0}
    point = DiskPoint(disk_key=f"{ID}/vda", size_bytes=10, point="p", tree_root="00", source_point="s")
    where = {"source_site": "alpha", "target_site": "beta", "level": "machine"}
    manifest = Manifest.model_validate({**common, **numbers, **where, "machines": [facts], "disks": [point]})
    choice = Choice("web", ID, manifest)
    return preview.machine(of, choice, purpose, tag="run", name="web", epoch=1, drill_networks={"lan": "drill-lan"})


def prepared(of: Plan, purpose: Purpose) -> MachinePrepareParams:
    found = preparation(of, "web", made(of, purpose), "made-web")
    assert found is not None
    return found


def test_a_guest_gets_what_the_plan_says_for_the_purpose() -> None:
    of = plan(addresses=ADDRESSES, hostname="web-dr", network={"failover": THERE})
    [nic] = prepared(of, "failover").nics
    assert (nic.address, nic.prefix, nic.gateway, nic.dns) == ("10.9.0.11", 16, "10.9.0.1", ("10.9.0.53",))
    assert (nic.mac, nic.source_mac, nic.known) == (MAC, MAC, ("10.5.0.7",))
    assert prepared(of, "failover").hostname == "web-dr"
    assert [(disk.disk_id, disk.bus, disk.boot) for disk in prepared(of, "failover").disks] == [("vda", "scsi", True)]


def test_a_drill_takes_its_own_subnet_and_no_name() -> None:
    of = plan(addresses=ADDRESSES, hostname="web-dr", network={"failover": THERE})
    [nic] = prepared(of, "drill").nics
    assert (nic.address, nic.prefix, nic.gateway) == ("10.1.0.9", 24, None)
    assert prepared(of, "drill").hostname is None


def test_a_guest_that_nothing_is_said_about_and_that_is_not_looked_at_is_left_alone() -> None:
    of = plan(guest={"checks": False})
    assert preparation(of, "web", made(of, "failover"), "made-web") is None
    of = plan(guest={"checks": "off"}, addresses=ADDRESSES)
    assert prepared(of, "failback").nics[0].address is None  # it may have to be given back what it had


def test_hardware_addresses_and_the_firmware_are_kept_or_new() -> None:
    kept = made(plan(), "failover")
    assert (kept.nics[0].mac, kept.nics[0].source_mac, kept.bios_id) == (MAC, "", ID)
    of = plan(mac="new", bios_id="new")
    new = made(of, "failover")
    assert new.nics[0].mac != MAC
    assert (new.nics[0].source_mac, new.bios_id) == (MAC, "")
    assert made(of, "failover") == new
    assert made(of, "drill").nics[0].mac not in {MAC, new.nics[0].mac}
    assert prepared(of, "failover").nics[0].source_mac == MAC


@pytest.mark.parametrize(
    ("stop_on", "severity", "stops"),
    [
        ("error", "error", True),
        ("error", "warning", False),
        ("warning", "warning", True),
        ("warning", "info", False),
        ("never", "error", False),
    ],
)
def test_the_policy_says_what_stops_a_machine(stop_on: str, severity: Any, stops: bool) -> None:
    policy = plan(guest={"stop_on": stop_on}).machine("web").guest
    assert bool(stopping((Finding(code="c", severity=severity, message="m"),), policy)) == stops


@pytest.mark.parametrize(
    "wrong",
    [
        {"hostname": "web dr"},
        {"hostname": "a'; Stop-Computer; '"},
        {"dns": ["web..example"]},
        {"mac": "other"},
    ],
)
def test_what_is_no_name_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        plan(**wrong)


def test_a_gateway_outside_its_subnet_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"10\.8\.0\.1 is not in 10\.9\.0\.0/16"):
        plan(network={"failover": {**THERE, "gateway": "10.8.0.1"}})
