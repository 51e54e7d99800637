"""The permissions that a node's role needs in an account: the smallest policy that its calls fit in.

What is removed has to carry the site's own tag; nothing else can be deleted with this policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from farshore.errors import Invalid
from farshore.platforms.aws import tags

#: What names look like in AWS; https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
REGION: Final = r"^[a-z]{2}(-[a-z]+)+-[0-9]+$"
BUCKET: Final = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
PREFIX: Final = r"^[A-Za-z0-9_][A-Za-z0-9_./=-]{0,199}$"
_FORMS: Final = {
    "region": (REGION, "a region, such as eu-central-1"),
    "bucket": (BUCKET, "the name of a bucket: 3 to 63 of a-z, 0-9, dots and hyphens"),
    "prefix": (PREFIX, "the beginning of a key, such as farshore"),
    "account": (r"^([0-9]{12}|\*)$", "the number of an account, 12 digits"),
    "partition": (r"^aws(-[a-z]+)*$", "aws, aws-cn or aws-us-gov"),
    "kms_key": (r"^(arn:[a-z-]+:kms:\S+)?$", "the ARN of a key"),
    "instance_role": (r"^(arn:[a-z-]+:iam::\S+)?$", "the ARN of a role"),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the document. ``resources`` and ``conditions`` may name fields of :class:`Scope` in braces."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...] = ("*",)
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scope:
    """For which site the document is. Empty: without the optional parts.

    Raises:
        Invalid: a value is not what it should be; ``field`` names it. Nobody would notice it in the document.
    """

    region: str
    bucket: str
    prefix: str = "farshore"
    account: str = "*"
    partition: str = "aws"
    kms_key: str = ""
    instance_role: str = ""
    #: With Run Command: in machines of the site, and at the helper of its drills.
    run_command: bool = False

    def __post_init__(self) -> None:
        for name, (form, what) in _FORMS.items():
            if not re.match(form, value := getattr(self, name)):
                raise Invalid(f"{value!r} is not {what}", code="aws-name", field=name)

    @property
    def site(self) -> str:
        """The value of the tag on all that is the site's."""
        return tags.site_of(self.bucket, self.prefix)


_OWN: Final = {"StringEquals": {f"aws:ResourceTag/{tags.SITE}": "{site}"}}
_HERE: Final = {"StringEquals": {"aws:RequestedRegion": "{region}"}}
_EC2: Final = "arn:{partition}:ec2:{region}:{account}"

LOOK: Final = Statement(
    "FarshoreLook",
    (
        "ec2:DescribeEgressOnlyInternetGateways",
        "ec2:DescribeImages",
        "ec2:DescribeInstanceAttribute",
        "ec2:DescribeInstanceStatus",
        "ec2:DescribeInstanceTypeOfferings",
        "ec2:DescribeInstanceTypes",
        "ec2:DescribeInstances",
        "ec2:DescribeInternetGateways",
        "ec2:DescribeNatGateways",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeRouteTables",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSnapshots",
        "ec2:DescribeSubnets",
        "ec2:DescribeTransitGatewayVpcAttachments",
        "ec2:DescribeVolumes",
        "ec2:DescribeVpcAttribute",
        "ec2:DescribeVpcEndpoints",
        "ec2:DescribeVpcPeeringConnections",
        "ec2:DescribeVpcs",
        "ec2:DescribeVpnGateways",
        "ec2:GetConsoleOutput",
        "ec2:GetConsoleScreenshot",
        "servicequotas:GetServiceQuota",
    ),
    conditions=_HERE,
)
READ: Final = Statement(
    "FarshoreReadPoints",
    (
        "ebs:GetSnapshotBlock",
        "ebs:ListChangedBlocks",
        "ebs:ListSnapshotBlocks",
        "ec2:CreateSnapshot",
        "ec2:CreateSnapshots",
    ),
    conditions=_HERE,
)
WRITE: Final = Statement(
    "FarshoreWritePoints",
    ("ebs:CompleteSnapshot", "ebs:PutSnapshotBlock", "ebs:StartSnapshot"),
    ("arn:{partition}:ec2:{region}::snapshot/*",),
)
MARK: Final = Statement("FarshoreMark", ("ec2:CreateTags", "ec2:DeleteTags"), conditions=_HERE)
MAKE: Final = Statement(
    "FarshoreMake",
    (
        "ec2:AuthorizeSecurityGroupEgress",
        "ec2:AuthorizeSecurityGroupIngress",
        "ec2:CreateNetworkInterface",
        "ec2:CreateSecurityGroup",
        "ec2:CreateSubnet",
        "ec2:CreateVolume",
        "ec2:CreateVpc",
        "ec2:ModifyVpcAttribute",
        "ec2:RegisterImage",
        "ec2:RevokeSecurityGroupEgress",
        "ec2:RevokeSecurityGroupIngress",
        "ec2:RunInstances",
    ),
    conditions=_HERE,
)
POWER: Final = Statement(
    "FarshorePower",
    (
        "ec2:AttachVolume",
        "ec2:DetachVolume",
        "ec2:ModifyInstanceAttribute",
        "ec2:StartInstances",
        "ec2:StopInstances",
    ),
    (f"{_EC2}:instance/*", f"{_EC2}:volume/*"),
)
REMOVE: Final = Statement(
    "FarshoreRemoveOwn",
    (
        "ec2:DeleteNetworkInterface",
        "ec2:DeleteSecurityGroup",
        "ec2:DeleteSnapshot",
        "ec2:DeleteSubnet",
        "ec2:DeleteVolume",
        "ec2:DeleteVpc",
        "ec2:DeregisterImage",
        "ec2:TerminateInstances",
    ),
    conditions=_OWN,
)
LIST: Final = Statement("FarshoreListManifests", ("s3:ListBucket",), ("arn:{partition}:s3:::{bucket}",))
KEEP: Final = Statement(
    "FarshoreKeepManifests", ("s3:GetObject", "s3:PutObject"), ("arn:{partition}:s3:::{bucket}/{prefix}/*",)
)
#: Records of points at the source are no manifests: they go with their points.
FORGET: Final = Statement(
    "FarshoreForgetPoints", ("s3:DeleteObject",), ("arn:{partition}:s3:::{bucket}/{prefix}/source/*",)
)
KEY: Final = Statement(
    "FarshoreKey",
    (
        "kms:Decrypt",
        "kms:DescribeKey",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
    ),
    ("{kms_key}",),
)
GRANT: Final = Statement(
    "FarshoreKeyForMachines", ("kms:CreateGrant",), ("{kms_key}",), {"Bool": {"kms:GrantIsForAWSResource": "true"}}
)
PASS: Final = Statement("FarshorePassRole", ("iam:PassRole",), ("{instance_role}",))

#: What Systems Manager knows of commands and agents is not to be had for some instances only.
COMMANDS: Final = Statement(
    "FarshoreLookAtCommands",
    ("ssm:DescribeInstanceInformation", "ssm:GetCommandInvocation", "ssm:ListCommands"),
    conditions=_HERE,
)
#: SendCommand needs the document and the instance, each by a statement. Global conditions would refuse it:
#: https://docs.aws.amazon.com/systems-manager/latest/userguide/run-command-setting-up.html
RUN: Final = Statement(
    "FarshoreRunDocuments",
    ("ssm:SendCommand",),
    (
        "arn:{partition}:ssm:{region}::document/AWS-RunShellScript",
        "arn:{partition}:ssm:{region}::document/AWS-RunPowerShellScript",
    ),
)
RUN_OWN: Final = Statement(
    "FarshoreRunInOwn",
    ("ssm:SendCommand",),
    (f"{_EC2}:instance/*",),
    {"StringEquals": {f"ssm:resourceTag/{tags.SITE}": "{site}"}},
)
RUN_HELPER: Final = Statement(
    "FarshoreRunAtHelper",
    ("ssm:SendCommand",),
    (f"{_EC2}:instance/*",),
    {"StringEquals": {f"ssm:resourceTag/{tags.HELPER}": "{site}"}},
)
#: The same of AttachNetworkInterface: the interface, and the instance that gets it.
JOIN: Final = Statement(
    "FarshoreJoinDrills",
    ("ec2:AttachNetworkInterface", "ec2:DetachNetworkInterface"),
    (f"{_EC2}:network-interface/*",),
    _OWN,
)
JOIN_HELPER: Final = Statement(
    "FarshoreHelperJoins",
    ("ec2:AttachNetworkInterface", "ec2:DetachNetworkInterface"),
    (f"{_EC2}:instance/*",),
    {"StringEquals": {f"aws:ResourceTag/{tags.HELPER}": "{site}"}},
)

_BASE: Final = (LOOK, READ, WRITE, MARK, MAKE, POWER, REMOVE, LIST, KEEP, FORGET)
RUNNING: Final = (COMMANDS, RUN, RUN_OWN, RUN_HELPER, JOIN, JOIN_HELPER)
STATEMENTS: Final = (*_BASE, KEY, GRANT, PASS, *RUNNING)
_OPTIONAL: Final = {
    KEY.sid: "kms_key",
    GRANT.sid: "kms_key",
    PASS.sid: "instance_role",
    **{statement.sid: "run_command" for statement in RUNNING},
}


def document(scope: Scope) -> dict[str, Any]:
    """Return the policy of a node's role."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            _written(statement, scope)
            for statement in STATEMENTS
            if statement.sid not in _OPTIONAL or getattr(scope, _OPTIONAL[statement.sid])
        ],
    }


def guard() -> dict[str, Any]:
    """Return a policy for everybody else: who has it cannot start a machine that is fenced."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "FarshoreFence",
                "Effect": "Deny",
                "Action": "ec2:StartInstances",
                "Resource": "*",
                "Condition": {"Null": {f"aws:ResourceTag/{tags.FENCE}": "false"}},
            }
        ],
    }


def command(statement: Statement) -> str:
    """Return the command that prints a document with the statement."""
    option = _OPTIONAL.get(statement.sid)
    return "farshore aws policy" + (f" --{option.replace('_', '-')}" if option else "")


def statement_of(action: str) -> Statement | None:
    """Return the statement that allows an action; None if no call of ours needs it."""
    return next((statement for statement in STATEMENTS if action in statement.actions), None)


def _written(statement: Statement, scope: Scope) -> dict[str, Any]:
    names = {name: getattr(scope, name) for name in ("region", "bucket", "prefix", "account", "partition", "site")}
    names |= {"kms_key": scope.kms_key, "instance_role": scope.instance_role}
    resources = [text.format_map(names) for text in statement.resources]
    found: dict[str, Any] = {
        "Sid": statement.sid,
        "Effect": "Allow",
        "Action": list(statement.actions),
        "Resource": resources[0] if len(resources) == 1 else resources,
    }
    if statement.conditions:
        found["Condition"] = {
            how: {key: text.format_map(names) for key, text in what.items()}
            for how, what in statement.conditions.items()
        }
    return found
