"""Probes in machines of AWS: by a helper into a drill's network, by Systems Manager in machines that run for good."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from doubles.aws_helper import HelperHost, await_running
from farshore.errors import FarshoreError, Permanent, Retry
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts, PoolFacts
from farshore.model.probe import GuestAgentProbe, HttpProbe, SshProbe, TcpProbe
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec, ProbeOutcome
from farshore.platforms.aws import policy, settings
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.types import Types
from farshore.recovery.probes import runner
from farshore.recovery.probes.relayed import Relay
from farshore.units import GIB, MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root")
TAG, DRILL, ADDRESS = "run-drill-9", "fs-lan-9", "10.77.0.20"
SITE = "acme-dr/farshore"


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    double.clear()
    aws_site.make_bucket(double, "acme-dr")
    return double


def compute_of(aws: AwsDouble, **more: Any) -> AwsCompute:
    given = {"type": "aws", "region": aws.region, "zone": f"{aws.region}a", "bucket": "acme-dr", "scratch": "/nowhere"}
    account = Account(settings.read({**given, "endpoint": aws.url, "poll_s": "10ms", "power_s": "20s", **more}))
    return AwsCompute(account, Types(account), lambda: PoolFacts(path="acme-dr", capacity_bytes=1, free_bytes=1))


@pytest.fixture
def compute(aws: AwsDouble) -> AwsCompute:
    return compute_of(aws, probe_helper="tagged")


@pytest.fixture
def helper(aws: AwsDouble) -> Iterator[HelperHost]:
    with HelperHost(aws, SITE) as host:
        yield host


def rehearsed(aws: AwsDouble, compute: AwsCompute) -> str:
    """Return a machine that runs in a drill's network."""
    hosts = {"52:54:00:00:00:01": ADDRESS}
    compute.isolated_network(NetworkCreateParams(tag=TAG, name=DRILL, subnet="10.77.0.0/24", hosts=hosts))
    ec2 = aws.client("ec2")
    volume = ec2.create_volume(Size=1, AvailabilityZone=f"{aws.region}a")["VolumeId"]
    point = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    while ec2.describe_snapshots(SnapshotIds=[point])["Snapshots"][0]["State"] != "completed":
        continue
    facts = MachineFacts(
        machine_id="db",
        name="db",
        cpus=2,
        memory_bytes=900 * MIB,
        disks=(DiskFacts(disk_id="vda", size_bytes=GIB, boot=True),),
        nics=(NicFacts(mac="52:54:00:00:00:01", network="lan"),),
    )
    machine_id = compute.create(
        MachineCreateParams(
            tag=TAG,
            purpose="drill",
            name="fs-db-9",
            facts=facts,
            cpus=2,
            memory_bytes=900 * MIB,
            disks=(DiskSpec(disk_id="vda", point=point, size_bytes=GIB),),
            nics=(NicSpec(mac="52:54:00:00:00:01", network=DRILL, address=ADDRESS),),
            epoch=1,
        )
    )
    compute.start(machine_id)
    return machine_id


def probed(compute: AwsCompute, machine_id: str, *probes: Any) -> tuple[ProbeOutcome, ...]:
    """Return what comes of probes, tried as a node tries them."""
    return runner.run(
        probes,
        machine_id=machine_id,
        compute=compute,
        address=runner.addresses_of(compute, machine_id, None),
        clock=time.monotonic,
        wait=lambda seconds: bool(time.sleep(min(seconds, 0.1))),
        relay=Relay(lambda: compute.reach(machine_id)),
    )


def http(**more: Any) -> HttpProbe:
    return HttpProbe.model_validate({"type": "http", "port": 8080, "timeout": "20s", "retries": 0, **more})


def tcp(**more: Any) -> TcpProbe:
    return TcpProbe.model_validate({"type": "tcp", "port": 8081, "banner": "x", "timeout": "20s", "retries": 0, **more})


def test_a_helper_tells_what_serves_in_a_drill_from_what_does_not(
    aws: AwsDouble, compute: AwsCompute, helper: HelperHost
) -> None:
    machine_id = rehearsed(aws, compute)
    helper.plug()
    helper.serve(ADDRESS, text="it's \N{SNOWMAN} $(serving)")
    outcomes = probed(
        compute,
        machine_id,
        http(contains="$(serving)"),
        tcp(banner="it's \N{SNOWMAN}"),
        http(contains="else"),
        http(status=204),
        tcp(banner="nothing of that"),
        tcp(port=9999),
    )
    assert [one.code for one in outcomes] == ["", "", "wrong-answer", "wrong-answer", "wrong-answer", "refused"]
    assert all(f"tried by {helper.machine_id}" in one.evidence for one in outcomes)
    assert "HTTP status 200\nit's \N{SNOWMAN} $(serving)" in outcomes[0].evidence
    assert outcomes[1].target == f"tcp://{ADDRESS}:8081"


def test_a_machine_that_is_mute_is_red_and_a_long_answer_is_read_as_far_as_it_is_handed_back(
    aws: AwsDouble, compute: AwsCompute, helper: HelperHost
) -> None:
    machine_id = rehearsed(aws, compute)
    helper.plug()
    [mute] = probed(compute, machine_id, tcp())
    assert mute.code in {"unreachable", "no-answer"}
    helper.serve(ADDRESS, text="".join(f"{number * 7919 % 10007:x}" for number in range(30_000)) + "END")
    cut = probed(compute, machine_id, http(), tcp(banner="END"))
    assert [one.code for one in cut] == ["no-answer", "no-answer"]
    assert all("bytes are missing" in one.detail for one in cut)


def test_what_goes_on_in_a_drill_with_a_helper_is_isolated_and_leaves_nothing(
    aws: AwsDouble, compute: AwsCompute, helper: HelperHost
) -> None:
    ec2 = aws.client("ec2")
    before = set(aws.things())
    scope = policy.Scope(region=aws.region, bucket="acme-dr", run_command=True)
    aws.policy(policy.document(scope))
    network = NetworkCreateParams(tag="run-1", name=DRILL, subnet="10.77.0.0/24", hosts={"a": "10.77.0.254"})
    compute.isolated_network(network)
    compute.isolated_network(network)
    [interface] = helper.interfaces()
    assert interface["PrivateIpAddress"] == "10.77.0.253"
    compute.sweep("run-1")
    aws.policy(None)
    assert set(aws.things()) == before

    machine_id = rehearsed(aws, compute)
    helper.plug()
    helper.serve(ADDRESS)
    aws.policy(policy.document(scope))
    [outcome] = probed(compute, machine_id, http(contains="serving"))
    assert outcome.green, outcome
    proof = compute.isolation(TAG, [DRILL], canaries=False)
    assert proof.proven, proof.reason
    assert "the helper of the site, which is reached by nobody" in proof.reason
    group = helper.interfaces()[0]["Groups"][0]["GroupId"]
    aws.policy(None)
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
    )
    assert "the helper admits others" in compute.isolation(TAG, [DRILL], canaries=False).reason
    removed, left = compute.sweep(TAG)
    assert left == []
    assert {text.split()[0] for text in removed} >= {"machine", "interface", "security", "VPC"}
    assert not helper.interfaces()


def test_without_a_helper_networks_admit_nobody(aws: AwsDouble, helper: HelperHost) -> None:
    compute = compute_of(aws)
    machine_id = rehearsed(aws, compute)
    assert helper.interfaces() == []
    assert compute.reach(machine_id) is None
    proof = compute.isolation(TAG, [DRILL], canaries=False)
    assert (proof.proven, "helper" in proof.reason) == (True, False)
    inventory = compute.inventory()
    assert (inventory.drill_probes, inventory.probe_helper) == (("console",), "")


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        *(("SendCommand", fault) for fault in ("throttle", "5xx", "lost", "cut")),
        *(("GetCommandInvocation", fault) for fault in ("throttle", "lost")),
        *(("AttachNetworkInterface", fault) for fault in ("throttle", "5xx", "lost", "cut", "expired-credentials")),
        ("DescribeNetworkInterfaces", "stale"),
    ],
)
def test_a_probe_is_green_whatever_happens_to_a_call(
    aws: AwsDouble, compute: AwsCompute, helper: HelperHost, operation: str, fault: str
) -> None:
    machine_id = rehearsed(aws, compute)
    helper.plug()
    helper.serve(ADDRESS)
    aws.fault(operation, fault)
    [outcome] = probed(compute, machine_id, http(contains="serving"))
    assert outcome.green, outcome
    assert not aws.pending_faults()
    if operation == "SendCommand":
        assert len([one for one in aws.calls("SendCommand") if one.outcome in {"ok", "lost"}]) == 1
    assert len(helper.interfaces()) == 1
    assert compute.sweep(TAG)[1] == []


def test_a_helper_that_cannot_help_is_named_by_what_it_lacks(
    aws: AwsDouble, compute: AwsCompute, helper: HelperHost
) -> None:
    ec2 = aws.client("ec2")

    def said(of: AwsCompute = compute) -> dict[str, str]:
        found = of.inventory()
        assert found.probe_helper == ""
        assert found.drill_probes == ("console",)
        return {one.code: f"{one.message} {one.remedy}" for one in found.findings if one.severity == "warning"}

    aws.no_agent(helper.machine_id)
    assert "AmazonSSMManagedInstanceCore" in said()["agent-not-registered"]
    helper.register(ping="ConnectionLost")
    assert "ConnectionLost" in said()["agent-not-registered"]
    helper.register(platform="Windows")
    assert "Windows" in said()["helper-not-linux"]
    helper.register()
    assert compute.inventory().drill_probes == ("console", "tcp", "http")
    assert [one.message for one in compute.check() if one.code == "probe-helper"]
    aws.agent(helper.machine_id, prefix=["env", "PATH=/nowhere"])
    [unusable] = [one for one in compute.check() if one.code == "helper-unusable"]
    assert "python3" in unusable.remedy
    helper.register()
    aws.policy(policy.document(policy.Scope(region=aws.region, bucket="acme-dr")))
    text = said()["permission"]
    assert "ssm:DescribeInstanceInformation" in text
    assert "FarshoreLookAtCommands" in text
    assert "--run-command" in text
    aws.policy(None)
    assert "there is no instance i-0abc" in said(compute_of(aws, probe_helper="i-0abc"))["helper-not-found"]
    ec2.delete_tags(Resources=[helper.machine_id], Tags=[{"Key": "farshore:helper"}])
    assert SITE in said(compute_of(aws, probe_helper=helper.machine_id))["helper-not-found"]
    ec2.stop_instances(InstanceIds=[helper.machine_id])
    assert "stop" in said(compute_of(aws, probe_helper=helper.machine_id))["helper-not-found"]


def test_a_drill_whose_helper_is_gone_tells_its_probes(aws: AwsDouble, compute: AwsCompute, helper: HelperHost) -> None:
    machine_id = rehearsed(aws, compute)
    aws.client("ec2").terminate_instances(InstanceIds=[helper.machine_id])
    [outcome] = probed(compute, machine_id, http())
    assert outcome.code == "cannot-try"
    assert "helper" in outcome.detail
    assert outcome.seconds < 15


def test_a_helper_has_room_for_so_many_networks(aws: AwsDouble, compute: AwsCompute, helper: HelperHost) -> None:
    machine_id = rehearsed(aws, compute)
    ec2 = aws.client("ec2")
    subnet = ec2.describe_instances(InstanceIds=[helper.machine_id])["Reservations"][0]["Instances"][0]["SubnetId"]
    for place in (1, 2):
        made = ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
        ec2.attach_network_interface(NetworkInterfaceId=made, InstanceId=helper.machine_id, DeviceIndex=place)
    with pytest.raises(FarshoreError) as failed:
        compute.reach(machine_id)
    assert failed.value.code == "helper-full"


def test_a_probe_of_a_login_is_not_tried_where_only_a_helper_gets(
    aws: AwsDouble, compute: AwsCompute, helper: HelperHost
) -> None:
    machine_id = rehearsed(aws, compute)
    ssh = SshProbe.model_validate({"type": "ssh", "user": "root", "key": "key", "command": "true"})
    [outcome] = probed(compute, machine_id, ssh)
    assert (outcome.code, outcome.tries) == ("cannot-try", 1)
    assert helper.interfaces()


# --- the agent of a machine that runs for good -------------------------------------------------------------------


def agent(command: tuple[str, ...] = (), **more: Any) -> GuestAgentProbe:
    given = {"type": "guest_agent", "command": command, "timeout": "20s", "retries": 0, **more}
    return GuestAgentProbe.model_validate(given)


@pytest.fixture
def machine(aws: AwsDouble) -> str:
    """A machine that runs, outside of any drill."""
    made = aws_site.Instance(aws, ["sda1"]).machine_id
    await_running(aws, made)
    return str(made)


def test_a_guest_agents_probe_is_green_by_the_agent_of_systems_manager(
    aws: AwsDouble, compute: AwsCompute, machine: str, tmp_path: Path
) -> None:
    aws.agent(machine)
    trap = tmp_path / "trap"
    word = f"it's $(touch {trap}) `touch {trap}` {{{{ssm:secret}}}} \"\n"
    outcomes = probed(
        compute,
        machine,
        agent(),
        agent(("/usr/bin/printf", "%s|", word, ""), contains=f"{word}||"),
        agent(("/bin/sh", "-c", "exit 194"), exit=194),
        agent(("/bin/sh", "-c", "echo no; echo why >&2; exit 3")),
        agent(("/no/such/program",)),
    )
    assert [one.code for one in outcomes] == ["", "", "", "wrong-answer", "wrong-answer"]
    assert "no\nwhy" in outcomes[3].evidence
    assert "exit status 127" in outcomes[4].evidence
    assert not trap.exists()
    assert not list(Path("/tmp").glob("ssm-*"))  # noqa: S108 - the double's scripts


def test_an_agent_that_never_registers_is_said_to(aws: AwsDouble, compute: AwsCompute, machine: str) -> None:
    [outcome] = probed(compute, machine, agent(("/bin/true",), timeout="1s", retries=None))
    assert outcome.code == "no-answer"
    assert f"the agent of Systems Manager in {machine} is not registered" in outcome.detail
    aws.agent(machine)
    aws.no_agent(machine)
    with pytest.raises(Retry, match="is not registered"):
        compute.agent(machine, {"execute": "guest-exec", "arguments": {"path": "/bin/true"}}, 5)


def test_a_command_that_takes_too_long_is_ended_and_said_to(aws: AwsDouble, compute: AwsCompute, machine: str) -> None:
    aws.agent(machine)
    [outcome] = probed(compute, machine, agent(("/bin/sleep", "60"), timeout="2s"))
    assert outcome.code == "no-answer"
    started = compute.agent(machine, {"execute": "guest-exec", "arguments": {"path": "/bin/sleep", "arg": ["60"]}}, 1)
    time.sleep(1.5)
    status = {"execute": "guest-exec-status", "arguments": started}
    assert compute.agent(machine, status, 0.1) == {"exited": False}
    with pytest.raises(Retry, match="Execution Timed Out"):
        compute.agent(machine, status, 1)


def test_a_command_that_is_never_delivered_is_said_to(aws: AwsDouble, compute: AwsCompute, machine: str) -> None:
    aws.agent(machine, silent=True)
    started = compute.agent(machine, {"execute": "guest-exec", "arguments": {"path": "/bin/true"}}, 1)
    assert compute.agent(machine, {"execute": "guest-exec-status", "arguments": started}, 0.1) == {"exited": False}
    aws.advance(31)
    with pytest.raises(Retry, match="Delivery Timed Out"):
        compute.agent(machine, {"execute": "guest-exec-status", "arguments": started}, 1)


@pytest.mark.parametrize("fault", ["lost", "5xx", "throttle", "cut", "expired-credentials"])
def test_a_command_is_run_once_whatever_happens_to_its_answer(
    aws: AwsDouble, compute: AwsCompute, machine: str, tmp_path: Path, fault: str
) -> None:
    aws.agent(machine)
    aws.fault("SendCommand", fault)
    line = f"echo run >>{tmp_path / 'runs'}"
    [outcome] = probed(compute, machine, agent(("/bin/sh", "-c", line)))
    assert outcome.green, outcome
    assert (tmp_path / "runs").read_text() == "run\n"


def test_no_agent_is_asked_in_a_drill(aws: AwsDouble, compute: AwsCompute) -> None:
    machine_id = rehearsed(aws, compute)
    with pytest.raises(Permanent, match="no way to Systems Manager"):
        compute.agent(machine_id, {"execute": "guest-ping"}, 1)
    made = aws_site.Instance(aws, ["sda1"]).machine_id
    with pytest.raises(Permanent, match="no word for"):
        compute.agent(made, {"execute": "guest-fsfreeze-freeze"}, 1)
