"""Old primaries in AWS that may go: with all that is theirs alone, by a role that may delete the site's own only."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import aws_site
from doubles.aws import ACCOUNT, AwsDouble
from farshore.errors import Conflict, NotFound, Reconnect, Retry
from farshore.model.task import RetireResult
from farshore.platforms.aws import policy
from farshore.platforms.contract import Platform
from farshore.platforms.registry import open_platform

_EPOCH = 3


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    """The double with an empty bucket."""
    double.clear()
    double.forget_calls()
    aws_site.make_bucket(double)
    return double


class Place:
    """A site whose role is held to our policy, and a machine of others that was its primary before."""

    def __init__(self, aws: AwsDouble, scratch: Path) -> None:
        config = aws_site.config(aws, scratch)
        self.aws, self.ec2 = aws, aws.client("ec2")
        self.platform: Platform = open_platform(config)
        self.before = set(aws.things())
        self.instance = aws_site.Instance(aws)
        self.machine_id = self.instance.machine_id
        named = [{"Key": "Name", "Value": "db"}]
        self.ec2.create_tags(Resources=[self.machine_id], Tags=named)
        scope = policy.Scope(region=aws.region, bucket=aws_site.BUCKET, prefix=config["prefix"], account=ACCOUNT)
        aws.policy(policy.document(scope))

    def rest(self) -> None:
        """Stop and fence it."""
        assert self.platform.compute is not None
        self.platform.compute.power_off(self.machine_id)
        assert self.platform.compute.fence(self.machine_id, _EPOCH)

    def retire(self, epoch: int = _EPOCH) -> RetireResult:
        assert self.platform.retire is not None
        return self.platform.retire(self.machine_id, epoch)

    def refused(self, code: str, epoch: int = _EPOCH) -> Conflict:
        """See that it is refused, and that nothing was deleted or marked."""
        before = self.aws.things()
        self.aws.forget_calls()
        with pytest.raises(Conflict) as caught:
            self.retire(epoch)
        assert caught.value.code == code
        assert self.aws.things() == before
        assert {call.operation for call in self.aws.calls() if not call.operation.startswith("Describe")} == set()
        return caught.value

    def left(self) -> set[str]:
        """Name the machines, volumes, interfaces and snapshots that are there since the beginning."""
        new = set(self.aws.things()) - self.before
        return {name for name in new if name.startswith(("i-", "vol-", "eni-", "snap-"))}


@pytest.fixture
def place(aws: AwsDouble, tmp_path: Path) -> Place:
    return Place(aws, tmp_path)


def test_a_machine_goes_with_its_volumes(place: Place) -> None:
    place.rest()
    result = place.retire()
    assert place.left() == set()
    assert [text.split()[0] for text in result.removed] == ["volume", "volume", "machine"]
    assert (result.removed[-1], result.kept) == (f"machine db ({place.machine_id})", ())
    with pytest.raises(NotFound):
        place.retire()


def test_what_may_be_wanted_back_stays(place: Place) -> None:
    place.refused("old-primary-not-fenced")
    place.rest()
    place.refused("old-primary-fenced-later", _EPOCH - 1)
    change = place.ec2.modify_instance_attribute
    place.aws.policy(None)
    change(InstanceId=place.machine_id, DisableApiTermination={"Value": True})
    found = place.refused("termination-protected")
    assert f"--instance-id {place.machine_id} --no-disable-api-termination" in (found.hint or "")
    change(InstanceId=place.machine_id, DisableApiTermination={"Value": False})
    assert place.retire().kept == ()


def test_what_others_may_use_is_kept(place: Place) -> None:
    place.rest()
    place.aws.policy(None)
    other = aws_site.Instance(place.aws, ["sda1"])
    root = next(volume for key, volume in place.instance.volumes.items() if key.endswith("/sda1"))
    place.ec2.attach_volume(VolumeId=root, InstanceId=other.machine_id, Device="/dev/sdx")  # somebody looks into it
    address = place.ec2.allocate_address(Domain="vpc")
    place.ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=place.machine_id)
    result = place.retire()
    assert result.kept == (
        f"volume {root} (1 GiB): it is used by machine {other.machine_id}",
        f"elastic address {address['PublicIp']} ({address['AllocationId']}): others may use it",
    )
    assert root in place.left()
    assert place.machine_id not in place.left()
    [kept] = place.ec2.describe_volumes(VolumeIds=[root])["Volumes"]
    assert "farshore:retired" not in {tag["Key"] for tag in kept["Tags"]}


def test_the_role_deletes_nothing_that_is_not_marked(place: Place) -> None:
    volume = next(iter(place.instance.volumes.values()))
    client = place.aws.client("ec2")
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        client.delete_volume(VolumeId=volume)
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        client.terminate_instances(InstanceIds=[place.machine_id])


@pytest.mark.parametrize("kind", ["lost", "cut", "5xx"])
@pytest.mark.parametrize("operation", ["CreateTags", "DetachVolume", "DeleteVolume", "TerminateInstances"])
def test_what_is_cut_short_is_gone_on_with(place: Place, operation: str, kind: str) -> None:
    place.rest()
    place.aws.fault(operation, kind, times=5)
    for _ in range(16):
        try:
            place.retire()
            break
        except (Retry, Reconnect):
            continue
        except NotFound:  # the control plane takes it for done
            break
    assert place.left() == set()
