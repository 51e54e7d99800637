"""From one region of AWS to another and home again, through a control plane and a node at each.

Each site has what is its own: bucket, key, quota, and a role that is held to the policy that Farshore prints for it, so
that a call in the other region is refused. What differs is all that crosses on the way back, and nothing is left over.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import ACCOUNT, AwsDouble, Call
from doubles.aws.sparse import same
from doubles.control_process import Control, until
from doubles.crossing import AwsNode
from doubles.ports import free_port
from farshore.errors import FarshoreError
from farshore.platforms.aws import policy, tags
from farshore.platforms.registry import open_platform
from farshore.units import GIB, MIB

_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "sts:AssumeRole"}],
}
_DATA = 12 * MIB


@dataclass(frozen=True, slots=True)
class Home:
    """One site: its name and region, and what in it is its own."""

    site: str
    region: str
    key: str
    role: str
    subnet: str

    @property
    def bucket(self) -> str:
        return f"acme-{self.site}"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "region": self.region,
            "zone": f"{self.region}a",
            "bucket": self.bucket,
            "kms_key": self.key,
            "role": {"arn": self.role},
            "instance_families": ["t3"],
        }


def made(aws: AwsDouble, site: str, region: str) -> Home:
    """Make a site's bucket, key and role, and name the subnet that machines get there."""
    key = aws.client("kms", region=region).create_key()["KeyMetadata"]["Arn"]
    role = aws.client("iam").create_role(RoleName=f"farshore-{site}", AssumeRolePolicyDocument=json.dumps(_TRUST))
    zone = [{"Name": "availability-zone", "Values": [f"{region}a"]}]
    [subnet] = aws.client("ec2", region=region).describe_subnets(Filters=zone)["Subnets"]
    home = Home(site, region, key, role["Role"]["Arn"], subnet["SubnetId"])
    aws_site.make_bucket(aws, home.bucket, region)
    allowed = policy.document(policy.Scope(region=region, bucket=home.bucket, account=ACCOUNT, kms_key=key))
    aws.client("iam").put_role_policy(
        RoleName=f"farshore-{site}", PolicyName="farshore", PolicyDocument=json.dumps(allowed)
    )
    return home


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsDouble]:
    with AwsDouble(tmp_path / "aws") as double:
        yield double


class Story:
    """A control plane, a node at each site, and the plan ``shop`` between them."""

    def __init__(self, folder: Path, aws: AwsDouble, central: Home, west: Home) -> None:
        self.aws = aws
        self.control = Control(folder / "home").start()
        self.nodes = [
            AwsNode(folder, aws, self.control.home.node_url, free_port(), home.site, **home.settings)
            for home in (central, west)
        ]

    def begin(self) -> None:
        """Let both nodes report."""
        for node in self.nodes:
            self.control.ok("PUT", f"/sites/{node.site}", {"platform": "aws"})
            about = {"roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{node.port}"}
            self.control.ok("PUT", f"/nodes/{node.name}", {"site": node.site, **about})
            token = self.control.ok("POST", f"/nodes/{node.name}:token")["token"]
            node.enrol(token, ca_file=self.control.home.ca)
            node.start()
        for node in self.nodes:
            until(lambda node=node: self.of(node.site)["inventory_at"], f"inventory of {node.site}", 120)

    def of(self, site: str) -> dict[str, Any]:
        """Return what is known of a site."""
        found: dict[str, Any] = self.control.ok("GET", f"/sites/{site}")
        return found

    def machine(self, site: str) -> dict[str, Any]:
        """Return the newest machine ``db`` as a site's inventory has it now."""
        before = self.of(site)["inventory_at"]
        self.control.ok("POST", f"/sites/{site}:refresh")
        until(lambda: self.of(site)["inventory_at"] != before, f"{site} is looked at", 120)
        items: list[dict[str, Any]] = self.control.ok("GET", f"/machines?site={site}&name=db")["items"]
        return items[-1]

    def protect(self, definition: dict[str, Any]) -> None:
        """Apply the plan and wait for its first checkpoint."""
        self.control.ok("PUT", "/plans/shop", {"definition": definition})
        self.control.ok("POST", "/plans/shop:protect", {"state": "protected"})
        until(lambda: self.control.ok("GET", "/plans/shop")["state"] == "protected", "the shop is protected", 180)

    def checkpoint(self, checkpoint_id: str) -> dict[str, Any]:
        """Return a checkpoint."""
        found: dict[str, Any] = self.control.ok("GET", f"/checkpoints/{checkpoint_id}")
        return found

    def run(self, verb: str, **body: Any) -> dict[str, Any]:
        """Order a run and return it as it ended."""
        run_id = self.control.ok("POST", f"/plans/shop:{verb}", body)["run"]["run_id"]

        def ended() -> dict[str, Any] | None:
            run: dict[str, Any] = self.control.ok("GET", f"/runs/{run_id}")
            return run if run["ended_at"] else None

        run: dict[str, Any] = until(ended, f"{verb} ends", 300)
        assert run["state"] == "succeeded", json.dumps({"error": run["error"], "steps": run["steps"]}, indent=1)
        return run

    def runs(self, kind: str) -> list[dict[str, Any]]:
        """Return the plan's runs of a kind."""
        found: list[dict[str, Any]] = self.control.ok("GET", "/runs?plan=shop")["items"]
        return [run for run in found if run["kind"] == kind]

    def ended(self, kind: str) -> list[dict[str, Any]]:
        """Return the plan's runs of a kind, whole, once there are any and all have ended."""
        known = [self.control.ok("GET", f"/runs/{run['run_id']}") for run in self.runs(kind)]
        return known if all(run["ended_at"] for run in known) else []

    def points(self, checkpoint_id: str) -> dict[str, Path]:
        """Return what a checkpoint holds, by the name of the disk."""
        disks = self.checkpoint(checkpoint_id)["disks"]
        return {disk["disk_key"].partition("/")[2]: self.aws.snapshot(disk["point"]) for disk in disks}

    def volumes(self, machine: dict[str, Any]) -> dict[str, Path]:
        """Return what a machine's volumes hold, by the name of the disk."""
        return {disk["disk_id"]: self.aws.volume(disk["path"]) for disk in machine["disks"]}

    def end(self) -> None:
        for node in self.nodes:
            node.close()
        self.control.kill()


def test_a_machine_goes_to_another_region_and_comes_home(aws: AwsDouble, tmp_path: Path) -> None:
    central, west = made(aws, "central", "eu-central-1"), made(aws, "west", "eu-west-1")
    aws.settings(console="READY")
    noise = random.Random(8)
    instance = aws_site.Instance(aws, kms_key=central.key)
    aws.client("ec2").create_tags(Resources=[instance.machine_id], Tags=[{"Key": "Name", "Value": "db"}])
    for key in instance.volumes:
        instance.write(key, 0, noise.randbytes(_DATA // 2))
        instance.write(key, GIB - _DATA // 2, noise.randbytes(_DATA // 2))
    before = set(aws.things())
    story = Story(tmp_path, aws, central, west)
    try:
        story.begin()
        # A copy takes nothing of the quota where it comes from.
        aws.settings(regional={central.region: {"pending_snapshots": 0}})
        first = story.machine("central")
        story.protect(plan(first["nics"][0]["network"], west.subnet))
        [full] = story.control.ok("GET", "/checkpoints?plan=shop")["items"]
        assert full["stats"]["mode"] == "full"

        instance.write(instance.key("sda1"), 3 * MIB, b"changed")
        instance.write(instance.key("sdf"), 600 * MIB, noise.randbytes(1000))
        aws.forget_calls()
        [cycle] = story.run("replicate")["cycles"]
        assert cycle["stats"]["mode"] == "incremental", cycle
        assert regions(aws, "ListChangedBlocks") == {central.region}
        assert regions(aws, "PutSnapshotBlock") == {west.region}
        assert len(aws.calls("PutSnapshotBlock")) == 2
        held = story.points(cycle["checkpoint_id"])
        assert set(held) == {"sda1", "sdf"}
        for name, volume in story.volumes(first).items():
            assert same(volume, held[name]), f"{name} is not the same in the other region"
        keys = {row["KmsKeyId"] for row in snapshots(aws, west.region)}
        assert keys == {west.key}, "what is kept in a region is encrypted with that region's key"

        kept = settled(aws)
        drill = story.run("drill")
        assert drill["machines"][0]["state"] == "green"
        assert settled(aws) == kept, "a rehearsal leaves nothing in either region"

        instance.write(instance.key("sdf"), 7 * MIB, b"the last row")
        story.run("failover", to_site="west")
        away = story.machine("west")
        for name, volume in story.volumes(away).items():
            assert same(volume, story.volumes(first)[name]), f"{name} does not run in the other region as it was"
        assert {row["KmsKeyId"] for row in volumes(aws, west.region)} == {west.key}
        # What has gone home before that would keep its checkpoint until it is retired.
        until(lambda: "shell" not in roles(aws, west.region), "the machine away needs no checkpoint", 120)

        with story.volumes(away)["sdf"].open("r+b") as disk:
            disk.seek(9 * MIB)
            disk.write(b"written away from home")
        aws.settings(regional={west.region: {"pending_snapshots": 0}})
        aws.forget_calls()
        back = story.run("reprotect")
        [cycle] = back["cycles"]
        assert cycle["stats"]["mode"] == "verify", cycle
        assert regions(aws, "PutSnapshotBlock") == {central.region}
        assert len(aws.calls("PutSnapshotBlock")) == 1, "what the old primary holds is not sent again"
        story.run("failover", to_site="central")
        home = story.machine("central")
        for name, volume in story.volumes(home).items():
            assert same(volume, story.volumes(away)[name]), f"{name} did not come home as it was"
        assert {row["KmsKeyId"] for row in volumes(aws, central.region)} == {central.key}

        until(lambda: "shell" not in roles(aws, central.region), "the machine at home needs no checkpoint", 120)
        story.control.ok("POST", "/plans/shop:protect", {"state": "unprotected", "keep_copies": False})
        for place in (central, west):
            until(lambda place=place: not snapshots(aws, place.region), f"no snapshot is left in {place.region}", 120)
        # What stays is what runs, and the two old primaries, which are kept.
        assert new(aws, before) == things(away) | things(home)
        # Until somebody says that they may go.
        retired = story.run("retire")
        assert {machine["state"] for machine in retired["machines"]} == {"succeeded"}
        assert new(aws, before) == things(home)
        assert not things(first) & set(aws.things())
        assert {call.resource for call in aws.calls("DeleteNetworkInterface") if call.outcome != "ok"} == set()
        assert refusals(aws) == []
    finally:
        story.end()


def test_a_machine_leaves_the_chain_once_it_stays(aws: AwsDouble, tmp_path: Path) -> None:
    central, west = made(aws, "central", "eu-central-1"), made(aws, "west", "eu-west-1")
    aws.settings(console="READY")
    instance = aws_site.Instance(aws, ["sda1"], kms_key=central.key)
    aws.client("ec2").create_tags(Resources=[instance.machine_id], Tags=[{"Key": "Name", "Value": "db"}])
    instance.write(instance.key("sda1"), MIB, b"the first row")
    before = set(aws.things())
    story = Story(tmp_path, aws, central, west)
    try:
        story.begin()
        story.protect(plan(story.machine("central")["nics"][0]["network"], west.subnet))
        story.run("failover", to_site="west", commit="manual")
        away = story.machine("west")
        assert away["on_points"], "a rollback may still come"
        assert "shell" in roles(aws, west.region)
        assert leases(aws, west.region)
        assert story.runs("detach") == []

        story.control.ok("POST", "/plans/shop:commit")
        [left] = until(lambda: story.ended("detach"), "the machine leaves the chain", 120)
        assert (left["state"], [one["state"] for one in left["machines"]]) == ("succeeded", ["succeeded"]), left
        assert "shell" not in roles(aws, west.region)
        assert leases(aws, west.region) == []
        assert not story.machine("west")["on_points"]
        # Nothing of the chain is under it: all checkpoints may go, and it stays as it is.
        story.control.ok("POST", "/plans/shop:protect", {"state": "unprotected", "keep_copies": False})
        # That takes a while at either site.
        until(lambda: new(aws, before) == things(away), "nothing is left but the machine", 120)
        assert same(story.volumes(away)["sda1"], aws.volume(instance.volumes[instance.key("sda1")]))
        assert refusals(aws) == []
    finally:
        story.end()


def test_a_migration_leaves_nothing_once_its_source_is_retired(aws: AwsDouble, tmp_path: Path) -> None:
    central, west = made(aws, "central", "eu-central-1"), made(aws, "west", "eu-west-1")
    aws.settings(console="READY")
    instance = aws_site.Instance(aws, kms_key=central.key)
    aws.client("ec2").create_tags(Resources=[instance.machine_id], Tags=[{"Key": "Name", "Value": "db"}])
    instance.write(instance.key("sdf"), MIB, b"the first row")
    before = set(aws.things())
    story = Story(tmp_path, aws, central, west)
    try:
        story.begin()
        first = story.machine("central")
        story.protect(plan(first["nics"][0]["network"], west.subnet))
        story.run("migrate", to_site="west")
        assert story.control.ok("GET", "/plans/shop")["state"] == "migrated"
        away = story.machine("west")
        for name, volume in story.volumes(away).items():
            assert same(volume, aws.volume(instance.volumes[instance.key(name)]))
        # The source rests: fenced, its volumes as they were, and without a trace of what told its changes.
        until(lambda: not snapshots(aws, central.region), "nothing is tracked at the source", 120)
        assert things(first) <= set(aws.things())
        preview = story.control.ok("POST", "/plans/shop:retire-preview", {})
        assert [one["machine_id"] for one in preview["before"]["old_primaries"]] == [instance.machine_id]
        [step] = [one for one in story.run("retire")["steps"] if one["machine"]]
        assert step["detail"].endswith(f"machine db ({instance.machine_id})"), step
        assert not things(first) & set(aws.things())
        until(lambda: "shell" not in roles(aws, west.region), "the machine needs no checkpoint", 120)
        story.control.ok("POST", "/plans/shop:protect", {"state": "unprotected", "keep_copies": False})
        until(lambda: not snapshots(aws, west.region), "no checkpoint is left", 120)
        assert new(aws, before) == things(away)
        assert refusals(aws) == []
    finally:
        story.end()


def test_what_is_in_another_region_is_not_there(
    aws: AwsDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)
    central, west = (
        open_platform(aws_site.config(aws, tmp_path, **made(aws, site, region).settings))
        for site, region in (("central", "eu-central-1"), ("west", "eu-west-1"))
    )
    draft = central.target.open("db/vda", GIB, None, "a-draft")
    draft.write(0, memoryview(bytes([7]) * MIB))
    point = draft.seal()
    draft.close()
    assert central.target.points() == [point]
    assert west.target.points() == []
    assert not west.target.has(point)
    for use in (
        lambda: west.target.lease(point, "a-run"),
        lambda: west.target.read_into(point, 0, memoryview(bytearray(MIB))),
        lambda: west.target.open("db/vda", GIB, point, "a-child"),
    ):
        with pytest.raises(FarshoreError) as caught:
            use()
        assert caught.value.code == "point-not-found"
    west.target.drop(point)
    assert central.target.points() == [point]


def plan(lan: str, subnet: str) -> dict[str, Any]:
    """Return the plan: a machine that nothing is looked for in, because its disks hold noise."""
    return {
        "name": "shop",
        "source_site": "central",
        "target_site": "west",
        "rpo": "1h",
        "machines": [
            {
                "name": "db",
                "guest": {"stop_on": "never"},
                "probes": [{"type": "console", "contains": "READY", "timeout": "60s"}],
            }
        ],
        "networks": [{"source": lan, "drill": {"subnet": "10.77.9.0/24"}, "failover": subnet}],
    }


def new(aws: AwsDouble, before: set[str]) -> set[str]:
    """Name what EC2 has since then, but for interfaces: each machine has its own."""
    return {name for name in set(aws.things()) - before if "/" not in name and not name.startswith("eni-")}


def settled(aws: AwsDouble) -> set[str]:
    """Name all that there is, but for the bundles for a later control plane: a node writes them when it gets to it."""
    return {name for name in aws.things() if "/manifests/bundles/" not in name}


def things(machine: dict[str, Any]) -> set[str]:
    """Name a machine and its volumes."""
    return {machine["machine_id"], *(disk["path"] for disk in machine["disks"])}


def refusals(aws: AwsDouble) -> list[Call]:
    """Return the calls that a role's policy did not allow."""
    return [call for call in aws.calls() if "nauthorized" in call.outcome or "Denied" in call.outcome]


def leases(aws: AwsDouble, region: str) -> list[str]:
    """Return the leases on snapshots in a region."""
    keys = [tag["Key"] for row in snapshots(aws, region) for tag in row["Tags"]]
    return [key for key in keys if key.startswith(tags.LEASE)]


def regions(aws: AwsDouble, operation: str) -> set[str]:
    """Return where an operation was called."""
    return {call.region for call in aws.calls(operation)}


def snapshots(aws: AwsDouble, region: str) -> list[dict[str, Any]]:
    """Return the account's snapshots in a region."""
    found: list[dict[str, Any]] = aws.client("ec2", region=region).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return found


def roles(aws: AwsDouble, region: str) -> set[str]:
    """Return what the account's snapshots in a region are for."""
    return {tag["Value"] for row in snapshots(aws, region) for tag in row["Tags"] if tag["Key"] == "farshore:role"}


def volumes(aws: AwsDouble, region: str) -> list[dict[str, Any]]:
    """Return the volumes in a region."""
    found: list[dict[str, Any]] = aws.client("ec2", region=region).describe_volumes()["Volumes"]
    return found
