"""Domain, network, checkpoint and job XML: what is read, what is written, and what text from people can do in it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from farshore.errors import Invalid
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec
from farshore.platforms.kvm import accelerator, domain, firewall, networks, tracking

XML = """
<domain type='kvm' id='3'>
  <name>shop-db</name><uuid>6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11</uuid>
  <metadata><other:thing xmlns:other="urn:other">kept</other:thing></metadata>
  <memory unit='KiB'>2097152</memory><vcpu placement='static' current='2'>4</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/pool/a.qcow2'/>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/root'/>
      <target dev='vda' bus='virtio'/><boot order='1'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='p/i'/>
      <target dev='sdb' bus='scsi'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:AA:00:01'/><source network='app'/>
      <model type='e1000e'/></interface>
    <interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='br0'/></interface>
    <serial type='pty'><log file='/var/log/c.log' append='off'/></serial>
  </devices>
</domain>
"""


def test_reads_what_matters() -> None:
    found = domain.parse(XML)
    assert (found.name, found.cpus, found.memory_bytes) == ("shop-db", 2, 2 << 30)
    assert (found.firmware, found.architecture, found.machine) == ("uefi", "x86_64", "q35")
    assert [(d.target, d.kind, d.path, d.format, d.bus, d.boot, d.tracked) for d in found.disks] == [
        ("vdb", "file", "/pool/a.qcow2", "qcow2", "virtio", False, True),
        ("vda", "block", "/dev/vg/root", "raw", "virtio", True, False),
        ("sdb", "network", "", "raw", "scsi", False, False),
    ]
    assert found.other_targets == ("sda",)
    assert [(n.mac, n.network, n.model) for n in found.nics] == [
        ("52:54:00:aa:00:01", "app", "e1000e"),
        ("52:54:00:aa:00:02", "br0", "virtio"),
    ]
    assert found.console_log == "/var/log/c.log"
    assert found.owner is None
    assert found.fence is None


def test_the_first_disk_boots_where_no_order_is_given() -> None:
    found = domain.parse(XML.replace("<boot order='1'/>", ""))
    assert [disk.target for disk in found.disks if disk.boot] == ["vdb"]


def test_a_fence_is_put_on_and_taken_off_without_a_trace() -> None:
    fenced = domain.fenced(XML, 7, autostart=True)
    assert domain.parse(fenced).fence == domain.Fence(epoch=7, autostart=True, barred=True)
    again = domain.fenced(fenced, 9, autostart=False)
    assert domain.parse(again).fence == domain.Fence(epoch=9, autostart=False, barred=True)
    assert again.count("/farshore-fenced/") == 1
    lifted = domain.element(domain.unfenced(again))
    assert domain.text(lifted) == domain.text(domain.element(XML))


def test_lifting_a_fence_leaves_the_machines_own_floppy() -> None:
    floppy = "<disk type='file' device='floppy'><target dev='fdb' bus='fdc'/></disk><controller type='fdc' index='0'/>"
    own = XML.replace("<interface", f"{floppy}<interface", 1)
    assert domain.unfenced(domain.fenced(own, 1, autostart=False)).count("fdc") == 2


def spec(**changes: Any) -> MachineCreateParams:
    facts = MachineFacts(
        machine_id="6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11",
        name="db",
        tags={"machine": "q35"},
        disks=(
            DiskFacts(disk_id="vdb", size_bytes=1, bus="virtio"),
            DiskFacts(disk_id="sda", size_bytes=1, bus="scsi", boot=True),
        ),
        nics=(NicFacts(mac="52:54:00:AA:00:01", network="app", model="e1000e"),),
    )
    values: dict[str, Any] = {
        "tag": "run-1",
        "purpose": "drill",
        "name": "db-drill",
        "facts": facts,
        "cpus": 3,
        "memory_bytes": 5 << 20,
        "disks": tuple(DiskSpec(disk_id=d, point="p", size_bytes=1) for d in ("sda", "vdb")),
        "nics": (NicSpec(mac="52:54:00:aa:00:01", network="net"),),
        "epoch": 4,
    }
    return MachineCreateParams(**{**values, **changes})


def build(made: MachineCreateParams, kind: accelerator.Accelerator = "tcg") -> domain.Domain:
    disks = {disk.disk_id: Path("/pool") / disk.disk_id for disk in made.disks}
    return domain.parse(
        domain.build(made, machine_id="id", disks=disks, console_log=Path("/c.log"), accelerator=kind).replace(
            'unit="b">5242880', ">5120"
        )
    )


def test_a_machine_is_made_as_the_source_had_it() -> None:
    made = build(spec())
    assert (made.name, made.kind, made.cpus, made.memory_bytes, made.machine) == ("db-drill", "qemu", 3, 5 << 20, "q35")
    assert [(d.target, d.bus, d.boot, d.path) for d in made.disks] == [
        ("vdb", "virtio", False, "/pool/vdb"),
        ("sda", "scsi", True, "/pool/sda"),
    ]
    assert [(n.mac, n.network, n.model) for n in made.nics] == [("52:54:00:aa:00:01", "net", "e1000e")]
    assert made.owner == domain.Owner("run-1", "drill", 4)
    assert made.console_log == "/c.log"
    assert build(spec(), "kvm").kind == "kvm"


def test_hardware_of_another_platform_becomes_virtio() -> None:
    facts = spec().facts.model_copy(
        update={
            "disks": (
                DiskFacts(disk_id="sda1", size_bytes=1, bus="nvme", boot=True),
                DiskFacts(disk_id="vda", size_bytes=1, bus="virtio"),
                DiskFacts(disk_id="sdf", size_bytes=1, bus="xen"),
            ),
            "nics": (NicFacts(mac="52:54:00:AA:00:01", network="app", model="ena"),),
        }
    )
    disks = tuple(DiskSpec(disk_id=disk.disk_id, point="p", size_bytes=1) for disk in facts.disks)
    made = build(spec(facts=facts, disks=disks))
    assert [(d.target, d.bus, d.boot, d.path) for d in made.disks] == [
        ("vdb", "virtio", True, "/pool/sda1"),
        ("vda", "virtio", False, "/pool/vda"),
        ("vdc", "virtio", False, "/pool/sdf"),
    ]
    assert made.nics[0].model == "virtio"


@pytest.mark.parametrize("hostile", ["<x/>", "a&b", "'\"", "]]>", "${x}"])
def test_text_from_people_never_becomes_markup(hostile: str) -> None:
    made = build(spec(name=hostile, tag=hostile))
    assert made.name == hostile
    assert made.owner
    assert made.owner.tag == hostile
    network = domain.element(networks.build(NetworkCreateParams(tag=hostile, name=hostile, subnet="10.9.0.0/24")))
    assert network.findtext("name") == hostile


def test_an_isolated_network_forwards_nothing() -> None:
    hosts = {"52:54:00:AA:00:01": "10.9.0.7"}
    root = domain.element(networks.build(NetworkCreateParams(tag="t", name="n", subnet="10.9.0.0/16", hosts=hosts)))
    assert root.find("forward") is None
    assert root.find("dns[@enable='no']") is not None
    assert len(networks.bridge_of("a-very-long-name-of-a-network")) == 15
    address = root.find("ip")
    assert address is not None
    assert (address.get("address"), address.get("prefix")) == ("10.9.0.1", "16")
    assert [(i.get("start"), i.get("end")) for i in address.findall("dhcp/range")] == [("10.9.0.2", "10.9.3.233")]
    assert [(i.get("mac"), i.get("ip")) for i in address.findall("dhcp/host")] == [("52:54:00:aa:00:01", "10.9.0.7")]


@pytest.mark.parametrize(
    ("subnet", "host", "field"),
    [
        ("10.9.0.1/24", "10.9.0.7", "subnet"),
        ("10.9.0.0/31", "10.9.0.1", "subnet"),
        ("nonsense", "10.9.0.7", "subnet"),
        ("10.9.0.0/24", "10.8.0.7", "hosts[m]"),
        ("10.9.0.0/24", "10.9.0.1", "hosts[m]"),
        ("10.9.0.0/24", "10.9.0.255", "hosts[m]"),
        ("10.9.0.0/24", "x", "hosts[m]"),
    ],
)
def test_refuses_addresses_that_cannot_be(subnet: str, host: str, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        networks.build(NetworkCreateParams(tag="t", name="n", subnet=subnet, hosts={"m": host}))
    assert caught.value.field == field


def test_rules_let_replies_and_dhcp_pass_drop_the_rest_and_count_behind() -> None:
    for tool, passing in (("iptables", ["ACCEPT", "ACCEPT"]), ("ip6tables", ["ACCEPT"])):
        made = firewall.rules(tool, "fs-1", "run-1")

        def of(table: str, chain: str, rules: list[firewall.Rule] = made) -> list[tuple[str, ...]]:
            return [rule.words for rule in rules if (rule.table, rule.chain) == (table, chain)]

        assert [words[-1] for words in of("filter", "INPUT")] == [*passing, "DROP"]
        assert {words[:2] for words in of("filter", "INPUT")} == {("-i", "fs-1")}
        assert [words[-1] for words in of("filter", "FORWARD")] == ["DROP", "DROP"]
        assert [words[-1] for words in of("security", "INPUT")] == [*["RETURN"] * len(passing), "farshore:run-1"]
        # Traffic between guests of the bridge is neither dropped nor counted, where the bridge filters at all.
        for table in ("filter", "security"):
            out, into = (words[: words.index("-m")] for words in of(table, "FORWARD"))
            assert out == ("-i", "fs-1", "!", "-o", "fs-1")
            assert into == ("!", "-i", "fs-1", "-o", "fs-1")
        assert all("farshore:run-1" in rule.words for rule in made)


def test_a_checkpoint_names_every_disk() -> None:
    root = tracking.checkpoint_xml("farshore-pt-1", ["vdb", "vda"], ["sda"])
    assert [(i.get("name"), i.get("checkpoint"), i.get("bitmap")) for i in root.findall("disks/disk")] == [
        ("vda", "bitmap", "farshore-pt-1"),
        ("vdb", "bitmap", "farshore-pt-1"),
        ("sda", "no", None),
    ]


def test_kvm_is_used_only_where_it_was_shown(tmp_path: Path) -> None:
    path = tmp_path / "accelerator.json"
    assert accelerator.choose("auto", path) == "tcg"
    accelerator.note(path, "kvm")
    assert accelerator.choose("auto", path) == "kvm"
    assert accelerator.choose("tcg", path) == "tcg"
    path.write_text(json.dumps({"kernel": f"other than {platform.release()}", "accelerator": "kvm"}))
    assert accelerator.choose("auto", path) == "tcg"
    path.write_text("{")
    assert accelerator.choose("auto", path) == "tcg"
    assert accelerator.choose("kvm", path) == "kvm"
    for wrong in ("fast", True, None):
        with pytest.raises(Invalid) as caught:
            accelerator.choose(wrong, path)
        assert caught.value.field == "platform.accelerator"
