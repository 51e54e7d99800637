"""The double's Run Command and interfaces as the vendor documents them, told by boto3 alone."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError
from doubles.aws import AwsDouble
from doubles.aws_helper import await_running
from doubles.aws_site import Instance

SHELL = "AWS-RunShellScript"


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    double.clear()
    return double


@pytest.fixture
def machine(aws: AwsDouble) -> str:
    """An instance that runs, whose agent is registered."""
    machine_id = Instance(aws, ["sda1"]).machine_id
    await_running(aws, machine_id)
    aws.agent(machine_id)
    return machine_id


def sent(aws: AwsDouble, machine_id: str, *lines: str, **more: Any) -> str:
    limit = more.pop("limit", "60")
    parameters = {"commands": list(lines), "executionTimeout": [limit]}
    given = {"DocumentName": SHELL, "Parameters": parameters, "TimeoutSeconds": 30, **more}
    reply = aws.client("ssm").send_command(InstanceIds=[machine_id], **given)
    return str(reply["Command"]["CommandId"])


def looked(aws: AwsDouble, machine_id: str, command_id: str) -> dict[str, Any]:
    return dict(aws.client("ssm").get_command_invocation(CommandId=command_id, InstanceId=machine_id))


def ended(aws: AwsDouble, machine_id: str, command_id: str) -> dict[str, Any]:
    for _ in range(400):
        try:
            found = looked(aws, machine_id, command_id)
        except ClientError as error:
            assert code(error) == "InvocationDoesNotExist"  # noqa: PT017 - any other is another test's
            continue
        if found["Status"] not in {"Pending", "InProgress", "Delayed"}:
            return found
        threading.Event().wait(0.02)
    raise AssertionError("it does not end")


def code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


def refused(call: Any) -> str:
    with pytest.raises(ClientError) as failed:
        call()
    return code(failed.value)


def test_a_command_is_run_and_its_output_handed_back_in_part(aws: AwsDouble, machine: str) -> None:
    done = ended(aws, machine, sent(aws, machine, "echo one", "yes x | head -c 50000", "yes y | head -c 50000 >&2"))
    assert (done["Status"], done["StatusDetails"], done["ResponseCode"]) == ("Success", "Success", 0)
    assert done["StandardOutputContent"].startswith("one\nx\n")
    assert (len(done["StandardOutputContent"]), len(done["StandardErrorContent"])) == (24_000, 8_000)


def test_a_script_that_fails_has_its_status(aws: AwsDouble, machine: str) -> None:
    done = ended(aws, machine, sent(aws, machine, "echo said", "exit 7"))
    assert (done["Status"], done["StatusDetails"], done["ResponseCode"]) == ("Failed", "Failed", 7)
    assert done["StandardOutputContent"] == "said\n"


def test_what_was_sent_a_moment_ago_is_not_to_be_seen_yet(aws: AwsDouble, machine: str) -> None:
    aws.settings(hidden_invocations=2, command_looks=1)
    command_id = sent(aws, machine, "true")
    for _ in range(2):
        assert refused(lambda: looked(aws, machine, command_id)) == "InvocationDoesNotExist"
    assert looked(aws, machine, command_id)["Status"] == "InProgress"
    assert ended(aws, machine, command_id)["Status"] == "Success"
    assert refused(lambda: looked(aws, machine, str(uuid.uuid4()))) == "InvocationDoesNotExist"


def test_what_runs_too_long_or_is_not_delivered_is_timed_out(aws: AwsDouble, machine: str) -> None:
    done = ended(aws, machine, sent(aws, machine, "echo begun; sleep 30", limit="1"))
    assert (done["Status"], done["StatusDetails"]) == ("TimedOut", "Execution Timed Out")
    assert done["StandardOutputContent"] == ""
    aws.agent(machine, silent=True)
    aws.settings(hidden_invocations=0, command_looks=0)
    command_id = sent(aws, machine, "true")
    assert looked(aws, machine, command_id)["Status"] == "Pending"
    aws.advance(31)
    found = looked(aws, machine, command_id)
    assert (found["Status"], found["StatusDetails"], found["ResponseCode"]) == ("TimedOut", "Delivery Timed Out", -1)


def test_what_cannot_be_sent_is_refused_in_the_vendors_words(aws: AwsDouble, machine: str) -> None:
    assert refused(lambda: sent(aws, machine, "dir", DocumentName="AWS-RunPowerShellScript")) == (
        "UnsupportedPlatformType"
    )
    assert refused(lambda: sent(aws, machine, "true", DocumentName="Mine")) == "InvalidDocument"
    assert refused(lambda: sent(aws, machine, "true", limit="0")) == "InvalidParameters"
    aws.no_agent(machine)
    assert refused(lambda: sent(aws, machine, "true")) == "InvalidInstanceId"
    aws.agent(machine)
    aws.client("ec2").terminate_instances(InstanceIds=[machine])
    assert refused(lambda: sent(aws, machine, "true")) == "InvalidInstanceId"


def test_commands_are_listed_by_time_and_document_in_pages(aws: AwsDouble, machine: str) -> None:
    names = [sent(aws, machine, "true", Comment=f"number {number}") for number in range(3)]
    ssm = aws.client("ssm")
    filters = [{"key": "DocumentName", "value": SHELL}, {"key": "InvokedAfter", "value": "2020-01-01T00:00:00Z"}]
    first = ssm.list_commands(Filters=filters, MaxResults=2)
    second = ssm.list_commands(Filters=filters, MaxResults=2, NextToken=first["NextToken"])
    assert [one["CommandId"] for one in (*first["Commands"], *second["Commands"])] == names
    assert first["Commands"][1]["Comment"] == "number 1"
    later = [{"key": "InvokedAfter", "value": "2099-01-01T00:00:00Z"}]
    assert ssm.list_commands(Filters=later)["Commands"] == []


def test_an_agent_is_known_while_its_machine_runs(aws: AwsDouble, machine: str) -> None:
    def known() -> list[Any]:
        wanted = [{"Key": "InstanceIds", "Values": [machine]}]
        return list(aws.client("ssm").describe_instance_information(Filters=wanted)["InstanceInformationList"])

    assert [(one["PingStatus"], one["PlatformType"]) for one in known()] == [("Online", "Linux")]
    aws.client("ec2").stop_instances(InstanceIds=[machine])
    assert known() == []


def test_an_interface_of_another_vpc_goes_to_a_machine_of_its_zone_that_has_a_place(
    aws: AwsDouble, machine: str
) -> None:
    ec2 = aws.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.99.0.0/16")["Vpc"]["VpcId"]

    def made(zone: str, cidr: str) -> str:
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)["Subnet"]["SubnetId"]
        return str(ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"])

    def attach(name: str, place: int) -> Any:
        return ec2.attach_network_interface(NetworkInterfaceId=name, InstanceId=machine, DeviceIndex=place)

    zone = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]["Placement"][
        "AvailabilityZone"
    ]
    here = [made(zone, f"10.99.{number}.0/24") for number in range(3)]
    elsewhere = made(f"{aws.region}{'b' if zone.endswith('a') else 'a'}", "10.99.9.0/24")
    assert refused(lambda: attach(elsewhere, 1)) == "InvalidParameterCombination"
    assert refused(lambda: attach(here[0], 0)) == "InvalidParameterValue"
    attachment = attach(here[0], 1)["AttachmentId"]
    assert refused(lambda: attach(here[0], 2)) == "InvalidNetworkInterface.InUse"
    attach(here[1], 2)
    assert refused(lambda: attach(here[2], 3)) == "AttachmentLimitExceeded"
    assert refused(lambda: ec2.delete_network_interface(NetworkInterfaceId=here[0])) == "InvalidParameterValue"
    found = ec2.describe_network_interfaces(NetworkInterfaceIds=[here[0]])["NetworkInterfaces"][0]
    theirs = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["SecurityGroups"]
    assert [one["GroupId"] for one in found["Groups"]] == [one["GroupId"] for one in theirs]
    ec2.detach_network_interface(AttachmentId=attachment)
    ec2.delete_network_interface(NetworkInterfaceId=here[0])


def test_a_security_group_that_another_ones_rule_names_is_not_deleted(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.99.0.0/16")["Vpc"]["VpcId"]
    names = [
        ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"] for name in ("one", "two")
    ]
    rule = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535, "UserIdGroupPairs": [{"GroupId": names[1]}]}
    ec2.authorize_security_group_ingress(GroupId=names[0], IpPermissions=[rule])
    assert refused(lambda: ec2.delete_security_group(GroupId=names[1])) == "DependencyViolation"
    for name in names:
        ec2.delete_security_group(GroupId=name)
