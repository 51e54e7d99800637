"""The policy that people are told to use allows the calls of the platform, and none besides."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from botocore import xform_name
from botocore.session import get_session
from farshore.cli import main
from farshore.platforms import aws
from farshore.platforms.aws import policy

SCOPE: Final = policy.Scope(
    region="eu-central-1",
    bucket="acme-dr",
    kms_key="arn:aws:kms:eu-central-1:123456789012:key/one",
    instance_role="arn:aws:iam::123456789012:role/guest",
    run_command=True,
)
#: Where the name of the permission is not that of the call; None: it needs none.
ACTIONS: Final = {
    "s3:HeadObject": "s3:GetObject",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadBucket": "s3:ListBucket",
    "sts:GetCallerIdentity": None,
}
#: EC2 and EBS use the caller's permission for the key, and RunInstances that to pass a role.
INDIRECT: Final = {*policy.KEY.actions, *policy.GRANT.actions, *policy.PASS.actions}


def called() -> set[str]:
    """Return the permissions of all calls that the platform's code names."""
    names = set()
    for path in Path(str(aws.__file__)).parent.glob("*.py"):
        if path.name == "errors.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        # Rules of security groups are opened and closed in both directions.
        if any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree)):
            names |= {
                f"{verb}_security_group_{way}" for verb in ("authorize", "revoke") for way in ("ingress", "egress")
            }
    session = get_session()
    found = set()
    for service, prefix in (
        ("ec2", "ec2"),
        ("ebs", "ebs"),
        ("s3", "s3"),
        ("ssm", "ssm"),
        ("sts", "sts"),
        ("service-quotas", "servicequotas"),
    ):
        for operation in session.get_service_model(service).operation_names:
            if xform_name(operation) in names:
                action = f"{prefix}:{operation}"
                found.add(ACTIONS.get(action, action))
    return {action for action in found if action is not None}


def test_every_call_is_allowed_and_nothing_else() -> None:
    allowed = {action for statement in policy.STATEMENTS for action in statement.actions}
    assert called() - allowed == set()
    assert allowed - called() - INDIRECT == set()


def test_nothing_is_removed_that_is_not_the_sites_own() -> None:
    for statement in policy.document(SCOPE)["Statement"]:
        if any(action.startswith(("ec2:Delete", "ec2:Terminate", "ec2:Deregister")) for action in statement["Action"]):
            own = statement["Sid"] == "FarshoreMark" or statement["Condition"] == {
                "StringEquals": {"aws:ResourceTag/farshore:site": "acme-dr/farshore"}
            }
            assert own, statement["Sid"]
        assert not any("*" in action for action in statement["Action"])
        assert "{" not in json.dumps(statement["Resource"])


def test_parts_for_what_a_site_does_not_have_are_left_out() -> None:
    bare = {one["Sid"] for one in policy.document(policy.Scope(region="eu-central-1", bucket="b-b"))["Statement"]}
    full = {one["Sid"] for one in policy.document(SCOPE)["Statement"]}
    running = {statement.sid for statement in policy.RUNNING}
    assert full - bare == {"FarshoreKey", "FarshoreKeyForMachines", "FarshorePassRole"} | running


def test_commands_are_sent_to_what_is_the_sites_own_and_to_its_helper_only() -> None:
    tags = set()
    for statement in policy.document(SCOPE)["Statement"]:
        if "ssm:SendCommand" not in statement["Action"]:
            continue
        # A condition on a global key would refuse the call.
        assert "aws:" not in json.dumps(statement.get("Condition", {}))
        if "document" not in str(statement["Resource"]):
            tags |= set(statement["Condition"]["StringEquals"].items())
    site = "acme-dr/farshore"
    assert tags == {("ssm:resourceTag/farshore:site", site), ("ssm:resourceTag/farshore:helper", site)}


def test_it_fits_into_what_iam_takes() -> None:
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html: 6,144 characters, spaces not counted
    assert len(json.dumps(policy.document(SCOPE), separators=(",", ":"))) <= 6144


def test_the_command_line_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["aws", "policy", "--region", "eu-central-1", "--bucket", "acme-dr"]
    for more, sids in (
        ([], {"FarshoreLook", "FarshoreRemoveOwn"}),
        (["--run-command"], {"FarshoreRunAtHelper", "FarshoreJoinDrills"}),
        (["--guard"], {"FarshoreFence"}),
    ):
        with pytest.raises(SystemExit) as ended:
            main.main([*arguments, *more])
        assert not ended.value.code
        assert sids <= {one["Sid"] for one in json.loads(capsys.readouterr().out)["Statement"]}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--region", ""),
        ("--bucket", "Bad Bucket"),
        ("--account", "12"),
        ("--kms-key", "alias/mine"),
        ("--partition", "azure"),
    ],
)
def test_the_command_refuses_what_can_be_no_name(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["aws", "policy", "--region", "eu-central-1", "--bucket", "acme-dr", option, value]
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert ended.value.code == 65
    said = capsys.readouterr()
    assert not said.out
    assert f"error: {option.removeprefix('--').replace('-', '_')}: {value!r} is not" in said.err


def test_it_needs_the_standard_library_alone() -> None:
    """Where an account is prepared, the policy is written by the Python of the controller, which has no engine."""
    source = Path(str(aws.__file__)).parents[3]
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r}); from farshore.platforms.aws import policy;"
        " print(policy.Scope(region='eu-central-1', bucket='acme-dr').site)"
    )
    done = subprocess.run([sys.executable, "-ISBc", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("acme-dr/farshore\n", "")
