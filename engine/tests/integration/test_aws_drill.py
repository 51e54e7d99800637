"""A rehearsal in AWS through a control plane and two nodes: what runs there is the checkpoint with its guest mended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import guest_disks
from doubles.aws import AwsDouble
from doubles.aws_helper import HelperHost
from doubles.aws_site import BUCKET, make_bucket
from doubles.control_process import Control, until
from doubles.crossing import AwsNode
from doubles.guest_disks import MAC, ROOT_UUID, linux
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.model.machine import NicFacts
from farshore.platforms.file import FileMachine
from farshore.units import MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="disks are shown as files by root")
PLAN = {
    "name": "shop",
    "source_site": "alpha",
    "target_site": "cloud",
    "rpo": "1h",
    "machines": [
        {
            "name": "db",
            "recovery": {"instance_type": "t3.small"},
            "probes": [{"type": "console", "contains": "READY", "timeout": "120s"}],
        }
    ],
}


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsDouble]:
    with AwsDouble(tmp_path / "aws") as double:
        make_bucket(double)
        yield double


@pytest.fixture
def control(aws: AwsDouble, tmp_path: Path) -> Iterator[Control]:
    """A control plane, a node of files with the machine ``db``, and one of AWS."""
    table = "/dev/vda1 / ext4 defaults 0 1\n"
    image = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": table})).read_bytes()
    machine = FileMachine.create(tmp_path / "alpha", "db", {"vda": len(image)})
    facts = machine.facts.model_copy(
        update={"cpus": 1, "memory_bytes": 512 * MIB, "nics": (NicFacts(mac=MAC, network="lan"),)}
    )
    (machine.path / "machine.json").write_text(facts.model_dump_json())
    for at in range(0, len(image), MIB):
        if any(image[at : at + MIB]):
            machine.write("vda", at, image[at : at + MIB])
    control = Control(tmp_path / "home").start()
    nodes = [
        NodeProcess(tmp_path, "alpha-1", "alpha", control.home.node_url, free_port()),
        AwsNode(tmp_path, aws, control.home.node_url, free_port(), probe_helper="tagged"),
    ]
    try:
        for node, platform in zip(nodes, ("file", "aws"), strict=True):
            control.ok("PUT", f"/sites/{node.site}", {"platform": platform})
            about = {"roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{node.port}"}
            control.ok("PUT", f"/nodes/{node.name}", {"site": node.site, **about})
            node.enrol(control.ok("POST", f"/nodes/{node.name}:token")["token"], ca_file=control.home.ca)
            node.start()
        for node in nodes:
            until(
                lambda node=node: control.ok("GET", f"/sites/{node.site}")["inventory_at"],
                f"inventory of {node.site}",
                120,
            )
        yield control
    finally:
        for node in nodes:
            node.close()
        control.kill()


def instances(aws: AwsDouble) -> list[dict[str, Any]]:
    """Return the instances that run."""
    running = [{"Name": "instance-state-name", "Values": ["running"]}]
    found = aws.client("ec2", attempts=3).describe_instances(Filters=running)["Reservations"]
    return [one for item in found for one in item["Instances"]]


def snapshots(aws: AwsDouble) -> dict[str, str]:
    """Return the digests of what the account's snapshots hold."""
    found = aws.client("ec2", attempts=3).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return {
        one["SnapshotId"]: hashlib.sha256(aws.snapshot(one["SnapshotId"]).read_bytes()).hexdigest() for one in found
    }


@pytest.fixture
def helper(aws: AwsDouble) -> Iterator[HelperHost]:
    """The operator's helper for drills."""
    with HelperHost(aws, f"{BUCKET}/farshore") as host:
        yield host


def drilled(control: Control, helper: HelperHost) -> dict[str, Any]:
    """Rehearse the shop and return the run as it ended."""
    run_id = control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"]

    def ended() -> dict[str, Any] | None:
        assert helper.failure is None, helper.failure
        run = control.ok("GET", f"/runs/{run_id}")
        return run if run["ended_at"] else None

    return until(ended, "the drill ends", 240)


def test_probes_in_a_rehearsal_are_tried_by_the_sites_helper(
    control: Control, aws: AwsDouble, helper: HelperHost
) -> None:
    probe = {"type": "http", "port": 8080, "contains": "serving", "timeout": "60s"}
    banner = {"type": "tcp", "port": 8081, "banner": "serving", "timeout": "60s"}
    subnet = aws.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    networks = [{"source": "lan", "drill": {"subnet": "10.77.9.0/24"}, "failover": subnet}]

    def apply(*probes: dict[str, Any]) -> None:
        recovery = {"instance_type": "t3.small", "addresses": {"drill": "10.77.9.20"}}
        machine = {"name": "db", "recovery": recovery, "probes": list(probes)}
        control.ok("PUT", "/plans/shop", {"definition": {**PLAN, "machines": [machine], "networks": networks}})

    apply(probe, banner)
    control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: control.ok("GET", "/plans/shop")["state"] == "protected", "the shop is protected", 180)
    control.ok("POST", "/sites/cloud:refresh", {})
    until(lambda: blind(control) is False, "the site has shown its helper", 60)
    [network] = control.ok("POST", "/plans/shop:drill-preview", {})["after"]["networks"]
    assert network["admits"] == f"probes by {helper.machine_id}"
    helper.watch(8080, 200, "serving")

    run = drilled(control, helper)
    assert run["state"] == "succeeded", json.dumps({"error": run["error"], "steps": run["steps"]}, indent=1)
    probes = run["machines"][0]["probes"]
    assert [one["green"] for one in probes] == [True, True]
    assert all(f"tried by {helper.machine_id}" in one["evidence"] for one in probes)
    [proof] = [one for one in run["steps"] if one["name"] == "isolation"]
    assert proof["state"] == "succeeded", proof
    assert not helper.interfaces()

    apply(probe, {**banner, "banner": "something else", "timeout": "10s"})
    run = drilled(control, helper)
    assert run["state"] == "failed"
    assert [one["code"] for one in run["machines"][0]["probes"]] == ["", "wrong-answer"]
    assert not helper.interfaces()
    assert not aws.client("ec2").describe_volumes(Filters=[{"Name": "tag-key", "Values": ["farshore:tag"]}])["Volumes"]


def blind(control: Control) -> bool:
    """Say whether preflight knows of probes that see nothing in a drill."""
    found = control.ok("GET", "/plans/shop/preflight")["findings"]
    return any(one["code"] == "probe-blind-in-drill" for one in found)


def test_a_rehearsed_guest_is_mended_and_its_checkpoint_is_not_touched(control: Control, aws: AwsDouble) -> None:
    subnet = aws.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    networks = [{"source": "lan", "drill": {"subnet": "10.77.9.0/24"}, "failover": subnet}]
    control.ok("PUT", "/plans/shop", {"definition": {**PLAN, "networks": networks}})
    control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    until(lambda: control.ok("GET", "/plans/shop")["state"] == "protected", "the shop is protected", 180)
    before = snapshots(aws)
    assert len(before) == 1

    run_id = control.ok("POST", "/plans/shop:drill", {})["run"]["run_id"]

    def started() -> str | None:
        run = control.ok("GET", f"/runs/{run_id}")
        assert not run["ended_at"], json.dumps({"error": run["error"], "steps": run["steps"]}, indent=1)
        if not any(step["name"] == "validate" for step in run["steps"]):
            return None  # shells run too
        return next((str(one["InstanceId"]) for one in instances(aws)), None)

    instance = until(started, "the rehearsed machine runs", 240)
    [disk] = next(one for one in instances(aws) if one["InstanceId"] == instance)["BlockDeviceMappings"]
    image = aws.volume(disk["Ebs"]["VolumeId"])
    assert guest_disks.read(image, "/etc/fstab") == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n".encode()
    assert b"console=ttyS0,115200" in (guest_disks.read(image, "/boot/grub/grub.cfg") or b"")
    aws.console(instance, "READY")

    run = until(lambda: (found := control.ok("GET", f"/runs/{run_id}"))["ended_at"] and found, "the drill ends", 180)
    assert run["state"] == "succeeded", json.dumps({"error": run["error"], "steps": run["steps"]}, indent=1)
    [step] = [one for one in run["steps"] if one["name"] == "prepare"]
    assert "fstab" in step["detail"]
    assert snapshots(aws) == before
    assert not aws.client("ec2").describe_volumes()["Volumes"]
