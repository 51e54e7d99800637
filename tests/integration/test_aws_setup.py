"""The playbook that prepares AWS: run against the double, read back, tried by nodes of that role alone, undone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from doubles.aws import AwsDouble
from doubles.datapath import Sites
from farshore.errors import Forbidden
from farshore.model.plan import Transport
from farshore.platforms.aws import networks, policy, settings
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.manifests import S3Manifests
from farshore.platforms.aws.types import Types
from farshore.units import MIB
from stand import COLLECTIONS, STACKS, Ansible
from test_roles import recap

BUCKET = "acme-dr"
SITE = f"{BUCKET}/farshore"
DISK = 5 * MIB
NOISE = os.urandom(2 * MIB)
NETWORK = {
    "name": "recovery",
    "cidr": "10.80.0.0/16",
    "subnets": [{"name": "shop", "cidr": "10.80.1.0/24"}, {"name": "office", "cidr": "10.80.2.0/24"}],
}
#: A later play that uses what the playbook has found out, as it is.
AND_THEN = """
- ansible.builtin.import_playbook: farshore.dr.setup_aws

- hosts: localhost
  gather_facts: false
  vars_files: ["{{ repo }}/roles/replication_node/defaults/main.yml"]
  vars:
    replication_node_site: "{{ aws_site_definition.name }}"
    replication_node_control_url: https://control.example.net:8444
    replication_node_platform: "{{ aws_site_platform }}"
  tasks:
    - ansible.builtin.template:
        src: "{{ repo }}/roles/replication_node/templates/node.yml.j2"
        dest: "{{ out }}/node.yml"
        mode: "0600"
    - ansible.builtin.copy:
        content: "{{ aws_site_definition | to_json }}"
        dest: "{{ out }}/site.json"
        mode: "0600"
"""
#: Two more sites: one whose nodes run in EC2, one whose nodes are a user that is there.
OTHERS = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: farshore.dr.aws_site
      vars:
        aws_site_bucket: acme-inside
        aws_site_identity: instance_profile
        aws_site_network: {name: other, cidr: 10.81.0.0/16, subnets: []}
    - ansible.builtin.set_fact:
        inside: "{{ aws_site_platform }}"
    - ansible.builtin.include_role:
        name: farshore.dr.aws_site
      vars:
        aws_site_bucket: acme-inside
        aws_site_prefix: second/half
        aws_site_identity: user
        aws_site_identity_name: backup
        aws_site_network: {name: other, cidr: 10.81.0.0/16, subnets: []}
    - ansible.builtin.assert:
        that:
          - "'role' not in inside and 'role' not in aws_site_platform"
          - aws_site_platform.prefix == 'second/half'
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, AwsDouble(tmp_path_factory.mktemp("aws")) as double:
        for name, value in double.environment().items():
            patch.setenv(name, value)
        yield double


@pytest.fixture(scope="module")
def ansible(aws, tmp_path_factory):
    folder = tmp_path_factory.mktemp("setup")
    hosts = {
        "localhost": {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}), encoding="utf-8")
    key = aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    variables = {
        "aws_site_region": aws.region,
        "aws_site_bucket": BUCKET,
        "aws_site_endpoint": aws.url,
        "aws_site_external_id": "customer-1",
        "aws_site_kms_key": key,
        "aws_site_kms_grant": True,
        "aws_site_network": NETWORK,
        "repo": str(Path(__file__).parents[2]),
        "out": str(folder),
    }
    return Ansible(folder, variables=variables)


def writes(aws):
    """Return the calls since the last look that may have changed something."""
    looks = ("Describe", "Get", "List", "Head")
    found = [call.operation for call in aws.calls() if not call.operation.startswith(looks)]
    aws.forget_calls()
    return found


def footprint(aws):
    """Return all that there is in the account that the playbook could have made."""
    ec2, iam = aws.client("ec2"), aws.client("iam")
    return {
        "buckets": {one["Name"] for one in aws.client("s3").list_buckets()["Buckets"]},
        "policies": {one["Arn"] for one in iam.list_policies(Scope="Local")["Policies"]},
        "roles": {one["RoleName"] for one in iam.list_roles()["Roles"]},
        "profiles": {one["InstanceProfileName"] for one in iam.list_instance_profiles()["InstanceProfiles"]},
        "vpcs": {one["VpcId"] for one in ec2.describe_vpcs()["Vpcs"]},
        "subnets": {one["SubnetId"] for one in ec2.describe_subnets()["Subnets"]},
        "groups": {one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"]},
    }


@pytest.fixture(scope="module")
def nothing(aws, ansible):
    """The account as it was before; a check of the playbook has been there."""
    before = footprint(aws)
    aws.forget_calls()
    looked = ansible.play("farshore.dr.setup_aws", "--check", "--diff")
    assert writes(aws) == []
    assert recap(looked.stdout)["localhost"][0] == 5, "bucket, policy, role, grant, VPC"
    assert '"versioning": "Enabled"' in looked.stdout
    assert footprint(aws) == before
    return before


@pytest.fixture(scope="module")
def prepared(ansible, nothing):
    """What the first run said."""
    return ansible.play_text(AND_THEN).stdout


@pytest.fixture(scope="module")
def platform(ansible, prepared):
    """The settings that the run wrote into a node's file."""
    return yaml.safe_load((ansible.folder / "node.yml").read_text(encoding="utf-8"))["platform"]


@pytest.fixture(scope="module")
def account(platform):
    return Account(settings.read({**platform, "poll_s": 0.02}))


def test_what_it_says_is_what_a_site_takes(services, ansible, prepared, platform):
    said = prepared[
        prepared.index('"farshore site add') : prepared.index("PLAY [", prepared.index("farshore site add"))
    ]
    lines = json.loads("[" + said[: said.index("]")] + "]")
    assert lines[0] == "farshore site add aws-eu-central-1 --platform aws"
    assert yaml.safe_load("\n".join(lines[1:])) == {
        "replication_node_site": "aws-eu-central-1",
        "replication_node_platform": platform,
    }
    definition = json.loads((ansible.folder / "site.json").read_text(encoding="utf-8"))
    register = """
- hosts: localhost
  gather_facts: false
  module_defaults:
    group/farshore.dr.dr: {url: "{{ farshore_url }}", token: "{{ farshore_token }}", ca_path: "{{ farshore_ca_path }}"}
  tasks:
    - farshore.dr.site:
        name: "{{ definition.name }}"
        platform: "{{ definition.platform }}"
        description: "{{ definition.description }}"
    - farshore.dr.site: {name: "{{ definition.name }}", state: absent}
"""
    assert recap(services.play_text(register, definition=definition).stdout)["localhost"] == (2, 0)


def test_a_second_run_changes_nothing(aws, ansible, prepared):
    before = footprint(aws)
    aws.forget_calls()
    for options in (["--check", "--diff"], []):
        assert recap(ansible.play("farshore.dr.setup_aws", *options).stdout)["localhost"] == (0, 0), options
    assert writes(aws) == []
    assert footprint(aws) == before


def test_the_bucket_is_closed_and_keeps_versions(aws, prepared):
    s3 = aws.client("s3")
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"].values())
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (tidy,) = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert tidy["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert tidy["NoncurrentVersionExpiration"] == {"NoncurrentDays": 90}
    assert s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"] == [{"Key": "farshore:setup", "Value": SITE}]
    s3.put_object(Bucket=BUCKET, Key="elsewhere/one", Body=b"1")
    aws.settings(secure=False)
    with pytest.raises(s3.exceptions.ClientError, match="403"):
        s3.put_object(Bucket=BUCKET, Key="elsewhere/one", Body=b"2")
    aws.settings(secure=True)
    for version in s3.list_object_versions(Bucket=BUCKET)["Versions"]:
        s3.delete_object(Bucket=BUCKET, Key=version["Key"], VersionId=version["VersionId"])


def test_the_policy_is_the_engines_own(aws, ansible, prepared):
    iam, arn = aws.client("iam"), f"arn:aws:iam::123456789012:policy/farshore-{BUCKET}"
    scope = policy.Scope(
        region=aws.region, bucket=BUCKET, account="123456789012", kms_key=ansible.variables["aws_site_kms_key"]
    )
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    assert iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"] == policy.document(
        scope
    )
    (trust,) = iam.get_role(RoleName=f"farshore-{BUCKET}")["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"}
    assert trust["Condition"] == {"StringEquals": {"sts:ExternalId": "customer-1"}}
    (grant,) = aws.client("kms").list_grants(KeyId=ansible.variables["aws_site_kms_key"])["Grants"]
    assert {f"kms:{one}" for one in grant["Operations"]} == {*policy.KEY.actions, *policy.GRANT.actions}


def test_nodes_can_work_with_what_was_made_and_nothing_else(aws, platform, account, tmp_path):
    """A replication by two processes, the target's as the role that the playbook has made."""
    aws.forget_calls()
    types = Types(account)
    compute = AwsCompute(account, types, lambda: None)
    assert [one.message for one in compute.check() if one.severity == "error"] == []
    place = networks.Networks(account).place("shop", "run-failover-1")
    assert place[1] == tuple(platform["security_groups"])
    target = {**platform, "poll_s": 0.02, "scratch": str(tmp_path / "scratch")}
    both = Sites(tmp_path, {"db": {"vda": DISK}}, Transport(), {"target": target})
    both.machine("db").write("vda", 0, NOISE)
    both.start_source()
    try:
        snapshot = both.point()
        assert "result" in both.replicate(both.params(snapshot))
        manifest = both.newest()
        content = both.frozen(snapshot)["db/vda"]
        with aws.snapshot(manifest.disks[0].point).open("rb") as image:
            assert image.read(DISK) == content
    finally:
        both.end()
    calls = aws.calls()
    assert {"CompleteSnapshot", "PutObject"} <= {call.operation for call in calls if call.outcome == "ok"}
    refused = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
    assert [call for call in calls if call.outcome in refused] == []
    # The policy was in force: the neighbour's manifests, and what was prepared, are out of reach.
    with pytest.raises(Forbidden):
        S3Manifests(Account(settings.read({**platform, "prefix": "neighbour"}))).put_if_absent("a", b"1")
    with pytest.raises(Forbidden):
        account.call("s3", "delete_bucket", Bucket=BUCKET)
    with pytest.raises(Forbidden):
        account.call(
            "iam", "attach_role_policy", RoleName=f"farshore-{BUCKET}", PolicyArn="arn:aws:iam::aws:policy/All"
        )


def test_the_network_leads_nowhere(aws, platform, prepared):
    ec2 = aws.client("ec2")
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "tag:farshore:setup", "Values": [SITE]}])["Vpcs"]
    within = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    assert {one["CidrBlock"] for one in ec2.describe_subnets(Filters=within)["Subnets"]} == {
        "10.80.1.0/24",
        "10.80.2.0/24",
    }
    for table in ec2.describe_route_tables(Filters=within)["RouteTables"]:
        assert {route["GatewayId"] for route in table["Routes"]} == {"local"}
    (group,) = ec2.describe_security_groups(GroupIds=platform["security_groups"])["SecurityGroups"]
    for rules in (group["IpPermissions"], group["IpPermissionsEgress"]):
        (rule,) = rules
        assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == platform["security_groups"]
        assert not rule["IpRanges"]


def test_other_identities(aws, ansible, prepared):
    iam = aws.client("iam")
    iam.create_user(UserName="backup")
    alone = {name: ansible.variables[name] for name in ("aws_site_region", "aws_site_endpoint")}
    Ansible(ansible.folder, variables=alone).play_text(OTHERS)
    (profile,) = iam.list_instance_profiles()["InstanceProfiles"]
    (trust,) = iam.get_role(RoleName=profile["Roles"][0]["RoleName"])["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}
    (attached,) = iam.list_attached_user_policies(UserName="backup")["AttachedPolicies"]
    assert attached["PolicyName"] == "farshore-acme-inside-second-half"
    assert iam.list_access_keys(UserName="backup")["AccessKeyMetadata"] == []


def test_nothing_that_is_used_is_removed_and_all_else_is(aws, ansible, nothing, platform):
    s3, ec2 = aws.client("s3"), aws.client("ec2")
    before = footprint(aws)
    s3.put_object(Bucket=BUCKET, Key="farshore/groups/a", Body=b"{}")
    aws.forget_calls()
    refused = ansible.play("farshore.dr.setup_aws", check=False, aws_site_state="absent")
    assert refused.returncode != 0
    assert f"Manifests of the site in {BUCKET}" in refused.stdout
    assert "Nothing was removed" in refused.stdout
    assert writes(aws) == []
    assert footprint(aws) == before
    for version in [
        one for key in ("Versions", "DeleteMarkers") for one in s3.list_object_versions(Bucket=BUCKET).get(key, [])
    ]:
        s3.delete_object(Bucket=BUCKET, Key=version["Key"], VersionId=version["VersionId"])
    for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]:
        ec2.delete_snapshot(SnapshotId=one["SnapshotId"])
    ansible.play("farshore.dr.setup_aws", aws_site_state="absent")
    left = footprint(aws)
    for kind, names in nothing.items():
        mine = {name for name in left[kind] - names if "inside" not in name}
        assert len(mine) <= {"vpcs": 2, "groups": 4}.get(kind, 0), (kind, mine)


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_what_is_missing_is_named(ansible, stack, tmp_path):
    """On each line of ansible-core: the role is read, and says what to install."""
    bare = tmp_path / "collections"
    (bare / "ansible_collections").mkdir(parents=True)
    (bare / "ansible_collections" / "farshore").symlink_to(COLLECTIONS / "ansible_collections" / "farshore")
    alone = Ansible(ansible.folder, stack, ansible.variables)
    alone.collections = bare
    done = alone.play("farshore.dr.setup_aws", check=False)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "ansible-galaxy collection install 'amazon.aws>=10.0.0' 'community.aws>=10.0.0'" in said
