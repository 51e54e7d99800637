"""Policies of buckets, with the one condition that moto does not know: whether a request came by TLS.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/security-best-practices.html (encryption of data in transit).
"""

from __future__ import annotations

import json
from typing import Any

from doubles.aws.policy import listed
from doubles.aws.world import World
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.s3.models import FakeBucket


def install(world: World) -> None:
    """Put our method into moto's class. Once per process."""

    def permission(self: Any, action: str, resource: str) -> Any:
        if self.policy is None:
            return PermissionResult.NEUTRAL
        policy = json.loads(self.policy)
        secure = str(world.behaviour.secure).lower()
        policy["Statement"] = [_without(one) for one in listed(policy["Statement"]) if _asks(one, secure) == secure]
        return IAMPolicy(json.dumps(policy)).is_action_permitted(action, resource)

    FakeBucket.get_permission = permission


def _asks(statement: dict[str, Any], secure: str) -> str:
    return str(statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport", secure))


def _without(statement: dict[str, Any]) -> dict[str, Any]:
    """Return a statement without the condition that is met."""
    rest = {how: dict(what) for how, what in statement.get("Condition", {}).items()}
    rest.get("Bool", {}).pop("aws:SecureTransport", None)
    return {**statement, "Condition": {how: what for how, what in rest.items() if what}}
