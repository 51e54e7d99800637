"""Recovered machines and isolated networks on a private hypervisor, called from inside its namespaces."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from doubles.kvm_inside import inside
from doubles.kvm_machines import Machine, qemu_img, same, wait_for
from farshore.errors import Conflict, Fenced, Invalid, NotFound
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts
from farshore.model.probe import GuestAgentProbe
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec
from farshore.platforms.contract import Platform
from farshore.platforms.kvm import images, open_kvm
from farshore.platforms.kvm.domain import element
from farshore.recovery.probes import runner
from farshore.testing.lab import Lab, guest
from farshore.units import MIB

pytestmark = pytest.mark.lab
SIZE = 4 * MIB
TAG = "run-1"
MAC = "52:54:00:fa:00:0c"
SUBNET = "10.99.7.0/24"


@pytest.fixture(scope="module")
def settings(lab: Lab) -> dict[str, Any]:
    folder = lab.beta.folder
    return {"uri": lab.beta.uri, "pool": str(folder / "storage" / "pool"), "scratch": str(folder / "s")}


@pytest.fixture(scope="module")
def platform(settings: dict[str, Any]) -> Platform:
    """The same pool from outside: drafts and points need no namespace."""
    return open_kvm(settings)


@pytest.fixture(scope="module")
def shared(lab: Lab, platform: Platform, settings: dict[str, Any]) -> Iterator[Any]:
    assert platform.compute
    with inside(lab.beta, lab.beta.folder, settings) as compute:
        yield compute


@pytest.fixture
def compute(shared: Any) -> Iterator[Any]:
    yield shared
    assert shared.sweep(TAG)[1] == []


@pytest.fixture
def point(platform: Platform) -> str:
    draft = platform.target.open("6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11/vda", SIZE, None, "compute-test")
    return draft.seal()


@pytest.fixture
def connection(lab: Lab) -> Iterator[Any]:
    connection = lab.beta.connect()
    yield connection
    connection.close()


def spec(point: str, **changes: Any) -> MachineCreateParams:
    facts = MachineFacts(
        machine_id="6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11",
        name="web",
        disks=(DiskFacts(disk_id="vda", size_bytes=SIZE, boot=True),),
        nics=(NicFacts(mac=MAC, network="app"),),
    )
    values: dict[str, Any] = {
        "tag": TAG,
        "purpose": "drill",
        "name": "web-drill-1",
        "facts": facts,
        "cpus": 1,
        "memory_bytes": 64 * MIB,
        "disks": (DiskSpec(disk_id="vda", point=point, size_bytes=SIZE),),
        "nics": (NicSpec(mac=MAC, network="recovery"),),
        "epoch": 4,
    }
    return MachineCreateParams(**{**values, **changes})


def rules(lab: Lab) -> str:
    return lab.beta.run("iptables", "-S", "INPUT") + lab.beta.run("ip6tables", "-S", "INPUT")


def test_creates_once_and_sweeps_all_of_it(compute: Any, point: str, platform: Platform, connection: Any) -> None:
    machine_id = compute.create(spec(point))
    assert compute.create(spec(point)) == machine_id
    facts = compute.facts(machine_id)
    assert (facts.name, facts.power, facts.cpus, facts.memory_bytes) == ("web-drill-1", "off", 1, 64 * MIB)
    assert facts.tags["farshore.tag"] == TAG
    assert [nic.mac for nic in facts.nics] == [MAC]
    [disk] = facts.disks
    assert (disk.disk_id, disk.size_bytes, disk.format) == ("vda", SIZE, "qcow2")
    before = platform.target.path(point).stat()  # type: ignore[attr-defined]
    assert images.header(Path(disk.path)).backing == platform.target.path(point)  # type: ignore[attr-defined]
    with pytest.raises(Conflict):
        platform.target.drop(point)
    compute.start(machine_id)
    compute.start(machine_id)
    assert compute.power(machine_id) == "on"
    assert not compute.stop(machine_id, 0.3), "nothing in it listens to the power button"
    assert compute.console(machine_id) == ""
    compute.power_off(machine_id)
    compute.power_off(machine_id)
    assert compute.power(machine_id) == "off"
    compute.start(machine_id)
    removed, remaining = compute.sweep(TAG)
    assert remaining == []
    assert {entry.split()[0] for entry in removed} == {"machine", "file"}
    assert compute.sweep(TAG) == ([], [])
    assert connection.listAllDomains() == []
    assert platform.target.path(point).stat().st_mtime_ns == before.st_mtime_ns  # type: ignore[attr-defined]
    with pytest.raises(NotFound):
        compute.power(machine_id)


def test_an_address_is_given_on_an_existing_network_and_taken_back(compute: Any, point: str, connection: Any) -> None:
    def given() -> list[tuple[str | None, str | None]]:
        root = element(connection.networkLookupByName("recovery").XMLDesc(0))
        return [(item.get("mac"), item.get("ip")) for item in root.findall("ip/dhcp/host")]

    before = given()
    mac = "52:54:00:fa:00:99"
    nics = (NicSpec(mac=mac, network="recovery", address="10.77.2.77"),)
    machine_id = compute.create(spec(point, nics=nics))
    assert (mac, "10.77.2.77") in given()
    assert compute.addresses(machine_id) == ["10.77.2.77"]
    for wrong in ("10.77.2.77", "192.0.2.1"):
        other = (NicSpec(mac="52:54:00:fa:00:98", network="recovery", address=wrong),)
        with pytest.raises(Conflict):
            compute.create(spec(point, name="other", nics=other))
    removed, _ = compute.sweep(TAG)
    assert f"address 10.77.2.77 of {mac} in network recovery" in removed
    assert given() == before


def test_names_what_is_missing_or_taken(compute: Any, point: str, lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        compute.create(spec(point, nics=(NicSpec(mac=MAC, network="nowhere"),)))
    assert "recovery" in str(caught.value), "it says which there are"
    disks = (DiskSpec(disk_id="vda", point="6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11/vda/none", size_bytes=SIZE),)
    with pytest.raises(NotFound):
        compute.create(spec(point, disks=disks))
    other = Machine(lab.beta, tmp_path, "web-drill-1")
    try:
        with pytest.raises(Conflict) as taken:
            compute.create(spec(point))
        assert taken.value.code == "machine-exists"
        assert compute.sweep(TAG)[1] == []
        assert other.handle.name() == "web-drill-1"
    finally:
        other.remove()
    for wrong in ("../x", "a/b", "", "..", "x" * 200):
        with pytest.raises(Invalid):
            compute.sweep(wrong)
        with pytest.raises(Invalid):
            compute.create(spec(point, name=wrong))
    with pytest.raises(NotFound):
        compute.start("6f9c9b0a-0000-4f0e-9d0f-5a5b4b1a7c11")


def test_an_isolated_network_is_made_once_and_swept(compute: Any, lab: Lab, connection: Any) -> None:
    params = NetworkCreateParams(tag=TAG, name="farshore-drill-1", subnet=SUBNET, hosts={MAC: "10.99.7.12"})
    before = rules(lab)
    for _ in range(2):
        compute.isolated_network(params)
    assert rules(lab).count(f"farshore:{TAG}") == 5  # three, and two of IPv6
    proof = compute.isolation(TAG, ["farshore-drill-1"], canaries=True)
    assert proof.proven, proof.reason
    assert {(one.source, one.target.split()[0], one.control) for one in proof.canaries} == {
        ("hypervisor", "hypervisor", True),
        ("hypervisor", "outside", True),
        ("hypervisor", "guest", True),
        ("guest a", "guest", True),
        ("guest a", "hypervisor", False),
        ("guest a", "outside", False),
        ("outside", "guest", False),
    }
    assert [(one.network, one.outside) for one in proof.packets] == [("farshore-drill-1", 0)]
    assert proof.packets[0].stopped > 0
    assert proof.packets[0].admitted > 0
    found = compute.inventory()
    assert found.one_address_space
    [facts] = [one for one in found.networks if one.name == "farshore-drill-1"]
    assert (facts.subnet, facts.isolated, facts.active) == (SUBNET, True, True)
    with pytest.raises(Conflict) as caught:
        compute.isolated_network(params.model_copy(update={"tag": "run-2"}))
    assert caught.value.code == "network-exists"
    with pytest.raises(Conflict) as used:
        compute.isolated_network(
            params.model_copy(update={"name": "farshore-drill-2", "subnet": "10.77.2.0/24", "hosts": {}})
        )
    assert used.value.code == "network-not-started"
    removed, remaining = compute.sweep(TAG)
    assert remaining == []
    assert "network farshore-drill-1" in removed
    assert "network farshore-drill-2" in removed
    assert rules(lab) == before
    assert [network.name() for network in connection.listAllNetworks()] == ["recovery"]


@pytest.mark.parametrize("open_by", [("INPUT",), ("FORWARD", "ip_forward")])
def test_a_network_that_leads_somewhere_is_not_proven(compute: Any, lab: Lab, open_by: tuple[str, ...]) -> None:
    params = NetworkCreateParams(tag=TAG, name="farshore-drill-1", subnet=SUBNET, hosts={MAC: "10.99.7.12"})
    compute.isolated_network(params)
    chain = open_by[0]
    lab.beta.run("iptables", "-I", chain, "1", "-j", "ACCEPT")
    if chain == "FORWARD":
        lab.beta.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    try:
        proof = compute.isolation(TAG, ["farshore-drill-1"], canaries=True)
        assert not proof.proven
        wrong = [one for one in proof.canaries if not one.ok]
        assert wrong
        assert not any(one.control for one in wrong)
        assert {one.target.split()[0] for one in wrong} == (
            {"hypervisor"} if chain == "INPUT" else {"outside", "guest"}
        )
        assert "reached" in proof.reason
        [packets] = proof.packets
        assert packets.outside > 0
    finally:
        lab.beta.run("iptables", "-D", chain, "-j", "ACCEPT")
        if chain == "FORWARD":
            lab.beta.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    assert compute.sweep(TAG)[1] == []


def test_a_fenced_machine_does_not_start_by_any_hand(compute: Any, lab: Lab, tmp_path: Path) -> None:
    machine = Machine(lab.beta, tmp_path, "primary")
    try:
        machine.handle.setAutostart(1)
        before = machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert compute.fence(machine.machine_id, 3)
        assert compute.fence(machine.machine_id, 3)
        assert compute.facts(machine.machine_id).tags["farshore.fenced"] == "3"
        assert not machine.handle.autostart()
        with pytest.raises(Fenced) as caught:
            compute.start(machine.machine_id)
        assert caught.value.evidence["epoch"] == 3
        with pytest.raises(libvirt.libvirtError, match="farshore-fenced/epoch-3"):
            machine.handle.create()
        assert compute.fence(machine.machine_id, 5)
        assert compute.fence(machine.machine_id, 4), "an epoch never falls"
        assert compute.facts(machine.machine_id).tags["farshore.fenced"] == "5"
        compute.unfence(machine.machine_id)
        compute.unfence(machine.machine_id)
        assert machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
        assert machine.handle.autostart()
        compute.start(machine.machine_id)
        # Found running: marked all the same, so that it does not come back once it is off.
        assert compute.fence(machine.machine_id, 6)
        assert compute.power(machine.machine_id) == "on"
        compute.power_off(machine.machine_id)
        with pytest.raises(Fenced):
            compute.start(machine.machine_id)
    finally:
        machine.remove()


def test_check_says_what_works_and_what_does_not(compute: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    found = {finding.code: finding.severity for finding in compute.check()}
    assert found["libvirt"] == "info"
    assert "error" not in found.values()
    away = open_kvm({**settings, "uri": f"qemu+unix:///system?socket={tmp_path}/none", "scratch": str(tmp_path / "s")})
    assert away.compute
    [error] = [finding for finding in away.compute.check() if finding.severity == "error"]
    assert error.code == "libvirt-unreachable"


SERVER = """
import http.server, json, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"role": "db", "status": "ok"}, separators=(",", ":")).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer((sys.argv[1], 8080), Answer).serve_forever()
"""
GET = """
import sys, urllib.request, urllib.error
try: print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error: print(error.read().decode())
"""


def test_a_guest_boots_on_a_point_alone_with_its_hypervisor_closed(
    compute: Any, lab: Lab, platform: Platform, tmp_path: Path
) -> None:
    image = guest.build(lab.cache)
    disk = tmp_path / "web.raw"
    qemu_img("convert", "-O", "raw", image.system["web"], disk)
    size = disk.stat().st_size
    point = fill(platform, disk, size)
    facts = MachineFacts(
        machine_id="6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c12",
        name="web",
        disks=(DiskFacts(disk_id="vda", size_bytes=size, boot=True),),
        nics=(NicFacts(mac=MAC, network="app"),),
    )
    network = NetworkCreateParams(tag=TAG, name="farshore-drill-b", subnet=SUBNET, hosts={MAC: "10.99.7.12"})
    compute.isolated_network(network)
    wanted = spec(
        point,
        facts=facts,
        memory_bytes=256 * MIB,
        disks=(DiskSpec(disk_id="vda", point=point, size_bytes=size),),
        nics=(NicSpec(mac=MAC, network=network.name, address="10.99.7.12"),),
    )
    # The guest asks "its database" at .11: here that is an address of the hypervisor itself.
    lab.beta.run("ip", "address", "add", "10.99.7.11/24", "dev", bridge(lab, network.name))
    server = subprocess.Popen(lab.beta.argv(sys.executable, "-c", SERVER, "10.99.7.11"))
    try:
        machine_id = compute.create(wanted)
        compute.start(machine_id)
        wait_for(lambda: "MARKER role=web" in compute.console(machine_id), 120)
        assert compute.addresses(machine_id) == ["10.99.7.12"]
        assert compute.screen(machine_id).startswith(b"\x89PNG\r\n\x1a\n")
        (agent,) = runner.run(
            [GuestAgentProbe(type="guest_agent", command=("/bin/cat", "/run/disks"), contains="ok")],
            machine_id=machine_id,
            compute=compute,
            address=lambda: None,
            clock=time.monotonic,
            wait=threading.Event().wait,
        )
        assert agent.green, agent

        def ask() -> dict[str, Any]:
            url = "http://10.99.7.12:8080/cgi-bin/status"
            answer: dict[str, Any] = json.loads(lab.beta.run(sys.executable, "-c", GET, url))
            return answer

        wait_for(lambda: answers(ask), 60)
        assert ask()["status"] != "ok", "the guest reached the hypervisor"
        rule = next(line for line in rules(lab).splitlines() if line.endswith("-j DROP") and TAG in line)
        lab.beta.run("iptables", "-D", *shlex.split(rule)[1:])
        wait_for(lambda: ask()["status"] == "ok", 30)  # the control: without the rule it does reach it
        assert compute.stop(machine_id, 60)
        assert compute.power(machine_id) == "off"
    finally:
        server.terminate()
        server.wait()
    _, remaining = compute.sweep(TAG)
    assert remaining == [], remaining
    # What the guest wrote went to its own layer.
    sealed = tmp_path / "sealed.raw"
    qemu_img("convert", "-O", "raw", platform.target.path(point), sealed)  # type: ignore[attr-defined]
    same(sealed, disk)


def fill(platform: Platform, disk: Path, size: int) -> str:
    draft = platform.target.open("6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c12/vda", size, None, "guest")
    with disk.open("rb") as source:
        for offset in range(0, size, MIB):
            data = source.read(MIB)
            if data.strip(b"\0"):
                draft.write(offset, memoryview(data))
    return draft.seal()


def bridge(lab: Lab, name: str) -> str:
    connection = lab.beta.connect()
    try:
        return str(connection.networkLookupByName(name).bridgeName())
    finally:
        connection.close()


def answers(ask: Callable[[], dict[str, Any]]) -> bool:
    try:
        ask()
    except Exception:  # noqa: BLE001  whatever a guest says while it starts
        return False
    return True
