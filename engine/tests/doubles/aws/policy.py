"""What a policy document allows."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

#: Where the name of the permission is not that of the call.
_ACTIONS: Final = {
    ("s3", "HeadObject"): "GetObject",
    ("s3", "ListObjectsV2"): "ListBucket",
    ("s3", "ListObjects"): "ListBucket",
    ("s3", "HeadBucket"): "ListBucket",
    ("s3", "DeleteObjects"): "DeleteObject",
    ("s3", "ListBuckets"): "ListAllMyBuckets",
}
#: Needs no permission: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
_FREE: Final = frozenset({"sts:GetCallerIdentity"})


def action_of(service: str, operation: str) -> str:
    """Return the permission that a call needs."""
    return f"{service}:{_ACTIONS.get((service, operation), operation)}"


class Policy:
    """One identity's policy. Actions are matched; resources and conditions are not looked at."""

    def __init__(self) -> None:
        self._document: Mapping[str, Any] | None = None

    def set(self, document: Mapping[str, Any] | None) -> None:
        """Hold to a document, or to none: everything is allowed."""
        self._document = document

    def allows(self, action: str) -> bool:
        """Say whether a call may be made: denied beats allowed."""
        if self._document is None or action in _FREE:
            return True
        allowed = False
        for statement in _list(self._document["Statement"]):
            if any(fnmatchcase(action.lower(), pattern.lower()) for pattern in _list(statement.get("Action", []))):
                if statement["Effect"] == "Deny":
                    return False
                allowed = True
        return allowed


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
