"""Who calls: the role or user that an access key belongs to, what their policies say, and who may be that role.

An access key that belongs to nobody is the administrator's, as is that of a role that was assumed but never made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from doubles.aws.policy import listed
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam import iam_backends
from moto.sts import sts_backends

_PARTITION = "aws"
#: Who calls with the administrator's key.
CALLER = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:user/farshore"


def documents(access_key: str) -> list[Mapping[str, Any]] | None:
    """Return all policies of whom a key belongs to; None: everything is allowed."""
    assumed = sts_backends[DEFAULT_ACCOUNT_ID][_PARTITION].get_assumed_role_from_access_key(access_key)
    iam = iam_backends[DEFAULT_ACCOUNT_ID][_PARTITION]
    owner: Any = _role(assumed.role_arn) if assumed is not None else iam.get_user_from_access_key_id(access_key)
    if owner is None:
        return None
    managed = [
        version.document
        for policy in owner.managed_policies.values()
        for version in policy.versions
        if version.version_id == policy.default_version_id
    ]
    return [json.loads(text) for text in [*managed, *owner.policies.values()]]


def trusts(role_arn: str, external_id: str | None) -> bool:
    """Say whether the administrator may assume a role: its trust policy names them, and what they have to say."""
    role = _role(role_arn)
    if role is None:
        return True
    for statement in listed(json.loads(role.assume_role_policy_document)["Statement"]):
        named = listed(statement["Principal"].get("AWS", []))
        wanted = statement.get("Condition", {}).get("StringEquals", {}).get("sts:ExternalId", external_id)
        root = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:root"
        if {root, DEFAULT_ACCOUNT_ID, CALLER, "*"} & set(named) and wanted == external_id:
            return True
    return False


def _role(arn: str) -> Any:
    roles = iam_backends[DEFAULT_ACCOUNT_ID][_PARTITION].roles.values()
    return next((role for role in roles if role.arn == arn), None)
