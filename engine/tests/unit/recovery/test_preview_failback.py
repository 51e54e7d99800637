"""What a machine gets on its way home: its own networks, hardware addresses and sizes, whatever it had elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from doubles.manifests import a_manifest
from farshore.model.checkpoint import DiskPoint
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.plan import Plan, Purpose
from farshore.model.task import MachineCreateParams
from farshore.recovery import preview
from farshore.recovery.preview import Choice

HOME = MachineFacts(
    machine_id="id-db",
    name="db",
    cpus=2,
    memory_bytes=1 << 30,
    disks=(DiskFacts(disk_id="vda", size_bytes=10),),
    nics=(
        NicFacts(mac="aa", network="lan", addresses=("10.0.0.5",)),
        NicFacts(mac="bb", network="backup"),
    ),
)
AWAY = MachineFacts(
    machine_id="made-db",
    name="db",
    cpus=8,
    memory_bytes=4 << 30,
    disks=HOME.disks,
    nics=(NicFacts(mac="aa", network="prod"), NicFacts(mac="bb", network="prod")),
)


def plan(addresses: dict[str, str] | None = None, **network: Any) -> Plan:
    lan = {"source": "lan", "drill": {"subnet": "10.1.0.0/24"}, "failover": "prod", **network}
    backup = {"source": "backup", "drill": {"subnet": "10.2.0.0/24"}, "failover": "prod"}
    return Plan.model_validate(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "machines": [{"name": "db", "recovery": {"cpus": 8, "memory": "4GiB", "addresses": addresses or {}}}],
            "networks": [lan, backup],
        }
    )


def made(plan: Plan, facts: MachineFacts, home: MachineFacts | None, purpose: Purpose) -> MachineCreateParams:
    away = home is not None
    manifest = a_manifest(
        group_id="grp-shop=db",
        epoch=2,
        source_site="beta" if away else "alpha",
        target_site="alpha" if away else "beta",
        machines=(facts,),
        disks=tuple(
            DiskPoint(
                disk_key=f"{facts.machine_id}/{disk.disk_id}",
                size_bytes=10,
                point="p",
                tree_root="00",
                source_point="pt-1",
            )
            for disk in facts.disks
        ),
    )
    drills = {"lan": "drill-lan", "backup": "drill-backup"}
    pick = Choice("db", facts.machine_id, manifest, home)
    return preview.machine(plan, pick, purpose, tag="t", name="db", epoch=3, drill_networks=drills)


def nics(order: MachineCreateParams) -> list[tuple[str, str, str | None]]:
    return [(nic.mac, nic.network, nic.address) for nic in order.nics]


def test_two_networks_that_were_one_elsewhere_are_two_again_at_home() -> None:
    order = made(plan(), AWAY, HOME, "failback")
    assert nics(order) == [("aa", "lan", None), ("bb", "backup", None)]
    assert (order.cpus, order.memory_bytes) == (2, 1 << 30)


def test_an_address_that_was_changed_is_what_it_was_before() -> None:
    order = made(plan({"failover": "10.8.0.5"}), AWAY, HOME, "failback")
    assert nics(order)[0] == ("aa", "lan", "10.0.0.5")


def test_the_plan_may_say_where_and_with_which_address_it_comes_home() -> None:
    order = made(plan({"failover": "10.8.0.5", "failback": "10.7.0.5"}, failback="lan-2"), AWAY, HOME, "failback")
    assert nics(order) == [("aa", "lan-2", "10.7.0.5"), ("bb", "backup", None)]


def test_new_hardware_addresses_are_given_up_by_place() -> None:
    changed = AWAY.model_copy(update={"nics": (NicFacts(mac="xx", network="prod"), NicFacts(mac="yy", network="prod"))})
    assert [nic[:2] for nic in nics(made(plan(), changed, HOME, "failback"))] == [("aa", "lan"), ("bb", "backup")]


def test_a_drill_of_the_way_back_keeps_the_networks_apart() -> None:
    order = made(plan(), AWAY, HOME, "drill")
    assert [nic[1] for nic in nics(order)] == ["drill-lan", "drill-backup"]
    assert order.cpus == 8


@pytest.mark.parametrize(("migration", "wanted"), [(None, "prod"), ("new-prod", "new-prod")])
def test_a_migration_goes_to_networks_of_its_own_or_those_of_a_failover(migration: str | None, wanted: str) -> None:
    more = {"migration": migration} if migration else {}
    assert nics(made(plan(None, **more), HOME, None, "migration"))[0][1] == wanted


def test_the_instance_type_at_home_is_the_one_that_it_had_there() -> None:
    home = HOME.model_copy(update={"tags": {"instance_type": "t3.small"}})
    assert made(plan(), AWAY, home, "failback").instance_type == "t3.small"
    assert not made(plan(), AWAY, HOME, "failback").instance_type


def test_a_machine_that_another_platform_ran_has_its_own_hardware_again_at_home() -> None:
    home = HOME.model_copy(
        update={
            "machine_id": "6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11",
            "disks": (
                DiskFacts(disk_id="sdb", size_bytes=10, bus="scsi"),
                DiskFacts(disk_id="sda", size_bytes=10, bus="sata", boot=True),
            ),
            "nics": (NicFacts(mac="aa", network="lan", model="e1000e"), HOME.nics[1]),
            "tags": {"machine": "q35"},
        }
    )
    away = AWAY.model_copy(
        update={
            "machine_id": "i-1",
            "disks": (
                DiskFacts(disk_id="vda", size_bytes=10, bus="nvme", boot=True),
                DiskFacts(disk_id="sdf", size_bytes=10, bus="nvme"),
                DiskFacts(disk_id="sdg", size_bytes=10, bus="nvme"),
            ),
            "nics": (NicFacts(mac="02:01", network="prod", model="ena"),),
        }
    )
    order = made(plan(), away, home, "failback")
    assert [disk.disk_id for disk in order.disks] == ["sda", "sdb", "sdg"]
    assert [(disk.disk_id, disk.bus, disk.boot) for disk in order.facts.disks] == [
        ("sda", "sata", True),
        ("sdb", "scsi", False),
        ("sdg", "nvme", False),
    ]
    assert order.facts.nics[0].model == "e1000e"
    assert order.facts.tags["machine"] == "q35"
    assert order.bios_id == home.machine_id


def test_firmware_buses_and_all_addresses_are_those_of_home_again() -> None:
    text = plan().model_dump(mode="json")
    text["machines"][0]["recovery"] |= {
        "firmware": "uefi",
        "disks": {"vda": {"bus": "sata"}},
        "networks": {"backup": {"failover": {"address": "10.9.0.7"}}, "lan": {"failback": {"network": "new-lan"}}},
    }
    of = Plan.model_validate(text)
    away = AWAY.model_copy(
        update={
            "firmware": "uefi",
            "disks": (AWAY.disks[0].model_copy(update={"bus": "sata"}),),
        }
    )
    home = HOME.model_copy(
        update={"nics": (HOME.nics[0], HOME.nics[1].model_copy(update={"addresses": ("10.2.9.5",)}))},
    )
    order = made(of, away, home, "failback")
    assert (order.facts.firmware, [disk.bus for disk in order.facts.disks]) == ("bios", ["virtio"])
    assert [(nic.network, nic.address) for nic in order.nics] == [("new-lan", "10.0.0.5"), ("backup", "10.2.9.5")]
