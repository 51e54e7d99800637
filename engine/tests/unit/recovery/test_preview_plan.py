"""What a drill and a failover make: networks, machines, addresses."""

from __future__ import annotations

import pytest
from doubles.manifests import a_manifest
from farshore.errors import Permanent
from farshore.model.checkpoint import DiskPoint
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.plan import Plan, Purpose
from farshore.recovery import preview
from farshore.recovery.preview import Choice

FACTS = MachineFacts(
    machine_id="id-db",
    name="db",
    cpus=2,
    memory_bytes=1 << 30,
    disks=(DiskFacts(disk_id="vda", size_bytes=10), DiskFacts(disk_id="vdb", size_bytes=20)),
    nics=(NicFacts(mac="aa", network="lan"), NicFacts(mac="bb", network="backup")),
)


def plan(vault: dict[str, object] | None = None, **recovery: object) -> Plan:
    return Plan.model_validate(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "machines": [{"name": "db", "recovery": recovery}],
            "networks": [
                {"source": "lan", "drill": {"subnet": "10.1.0.0/24"}, "failover": "prod"},
                {"source": "backup", "drill": {"subnet": "10.2.0.0/24"}, "failover": "vault", **(vault or {})},
            ],
        }
    )


def choice(disks: tuple[str, ...] = ("vda", "vdb"), facts: MachineFacts = FACTS) -> Choice:
    manifest = a_manifest(
        group_id="grp-shop-db",
        machines=(facts,),
        disks=tuple(
            DiskPoint(
                disk_key=f"id-db/{disk}", size_bytes=10, point=f"point-{disk}", tree_root="00", source_point="pt-1"
            )
            for disk in disks
        ),
    )
    return Choice("db", "id-db", manifest)


NETWORKS = {"lan": "drill-lan", "backup": "drill-backup"}


def test_facts_come_from_the_checkpoint_and_choices_from_the_plan() -> None:
    order = preview.machine(
        plan(cpus=4, memory="2GiB", addresses={"failover": "10.8.0.9"}),
        choice(),
        "failover",
        tag="t",
        name="db",
        epoch=2,
        drill_networks={},
    )
    assert (order.cpus, order.memory_bytes, order.epoch) == (4, 2 << 30, 2)
    assert [disk.point for disk in order.disks] == ["point-vda", "point-vdb"]
    assert [(nic.mac, nic.network, nic.address) for nic in order.nics] == [
        ("aa", "prod", "10.8.0.9"),
        ("bb", "vault", None),
    ]


def test_a_drill_address_goes_to_the_interface_whose_network_it_fits() -> None:
    found = plan(addresses={"drill": "10.2.0.7"})
    order = preview.machine(found, choice(), "drill", tag="t", name="x", epoch=1, drill_networks=NETWORKS)
    assert [(nic.network, nic.address) for nic in order.nics] == [("drill-lan", None), ("drill-backup", "10.2.0.7")]
    networks = preview.networks(found, [choice()], NETWORKS, "t")
    assert [(item.name, item.subnet, item.hosts) for item in networks] == [
        ("drill-lan", "10.1.0.0/24", {}),
        ("drill-backup", "10.2.0.0/24", {"bb": "10.2.0.7"}),
    ]
    assert preview.address(found, "db", "drill") == "10.2.0.7"
    assert preview.address(found, "db", "failover") is None


def plugged(of: Plan, purpose: Purpose) -> list[tuple[str, str | None]]:
    order = preview.machine(of, choice(), purpose, tag="t", name="x", epoch=1, drill_networks=NETWORKS)
    return [(nic.network, nic.address) for nic in order.nics]


def test_each_interface_may_have_a_network_and_an_address_of_its_own() -> None:
    own = {
        "lan": {"drill": {"address": "10.1.0.7"}, "failover": {"network": "dmz"}},
        "backup": {"failover": {"address": "10.9.0.7"}, "migration": {"network": "attic"}},
    }
    of = plan(networks=own, addresses={"failover": "10.8.0.9", "drill": "10.2.0.9"})
    assert plugged(of, "failover") == [("dmz", "10.8.0.9"), ("vault", "10.9.0.7")]
    assert plugged(of, "drill") == [("drill-lan", "10.1.0.7"), ("drill-backup", "10.2.0.9")]
    assert plugged(of, "migration") == [("prod", None), ("attic", None)]
    hosts = [item.hosts for item in preview.networks(of, [choice()], NETWORKS, "t")]
    assert hosts == [{"aa": "10.1.0.7"}, {"bb": "10.2.0.9"}]
    assert preview.address(plan(networks=own), "db", "failover") == "10.9.0.7"


def test_an_address_goes_to_the_interface_whose_subnet_the_plan_tells() -> None:
    of = plan({"guest": {"failover": {"subnet": "10.9.0.0/24"}}}, addresses={"failover": "10.9.0.7"})
    assert plugged(of, "failover") == [("prod", None), ("vault", "10.9.0.7")]


@pytest.mark.parametrize("purpose", ["drill", "failover", "migration"])
def test_firmware_and_buses_are_those_of_the_plan(purpose: Purpose) -> None:
    of = plan(firmware="uefi", disks={"vdb": {"bus": "sata"}, "vdz": {"bus": "ide"}})
    order = preview.machine(of, choice(), purpose, tag="t", name="x", epoch=1, drill_networks=NETWORKS)
    assert order.facts.firmware == "uefi"
    assert [(disk.disk_id, disk.bus) for disk in order.facts.disks] == [("vda", "virtio"), ("vdb", "sata")]
    told = preview.describe([order], [], of, ["db"])["machines"][0]
    assert (told["firmware"], [disk["bus"] for disk in told["disks"]]) == ("uefi", ["virtio", "sata"])


def test_a_drill_makes_only_the_networks_that_somebody_is_plugged_into() -> None:
    alone = FACTS.model_copy(update={"nics": (NicFacts(mac="aa", network="lan"),)})
    networks = preview.networks(plan(), [choice(facts=alone)], NETWORKS, "t")
    assert [item.name for item in networks] == ["drill-lan"]


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (choice(disks=("vda",)), "disk-not-in-checkpoint"),
        (choice(facts=FACTS.model_copy(update={"nics": (NicFacts(mac="cc", network="dark"),)})), "network-unmapped"),
        (choice(facts=FACTS.model_copy(update={"machine_id": "id-web"})), "machine-not-in-checkpoint"),
    ],
)
def test_what_cannot_be_made_says_why(made: Choice, code: str) -> None:
    with pytest.raises(Permanent) as caught:
        preview.machine(plan(), made, "drill", tag="t", name="x", epoch=1, drill_networks=NETWORKS)
    assert caught.value.code == code
    assert caught.value.hint


def test_an_instance_type_is_the_plans_and_shown_before() -> None:
    found = plan(instance_type="m6i.large")
    order = preview.machine(found, choice(), "failover", tag="t", name="x", epoch=1, drill_networks=NETWORKS)
    assert order.instance_type == "m6i.large"
    assert preview.describe([order], [], found, ["db"])["machines"][0]["instance_type"] == "m6i.large"
