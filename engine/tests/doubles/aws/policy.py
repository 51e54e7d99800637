"""What a policy document allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for. ``resource``: an ARN, or empty where it is not known, which any resource matches.

    ``tags``: those of each thing that it would remove, so far as they are known.
    """

    action: str
    region: str = ""
    resource: str = ""
    tags: tuple[Mapping[str, str], ...] = ()


class Policy:
    """One identity's policy."""

    def __init__(self) -> None:
        self._document: Mapping[str, Any] | None = None

    def set(self, document: Mapping[str, Any] | None) -> None:
        """Hold to a document, or to none: everything is allowed."""
        self._document = document

    def allows(self, asked: Asked) -> bool:
        """Say whether a call may be made."""
        return self._document is None or allowed([self._document], asked)


def allowed(documents: Iterable[Mapping[str, Any]], asked: Asked) -> bool:
    """Say whether policies let a call pass: denied beats allowed.

    Of conditions, the region that is asked is looked at, and which tags have to be on what is removed.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
    """
    if asked.action in _FREE:
        return True
    found = False
    for document in documents:
        for statement in listed(document["Statement"]):
            if _about(statement, asked):
                if statement["Effect"] == "Deny":
                    return False
                found = True
    return found


def _about(statement: Mapping[str, Any], asked: Asked) -> bool:
    if not any(fnmatchcase(asked.action.lower(), one.lower()) for one in listed(statement.get("Action", []))):
        return False
    if asked.resource and not any(fnmatchcase(asked.resource, one) for one in listed(statement.get("Resource", []))):
        return False
    equal = statement.get("Condition", {}).get("StringEquals", {})
    for key, value in equal.items():
        name = key.removeprefix("aws:ResourceTag/")
        if name != key and any(tags.get(name) not in listed(value) for tags in asked.tags):
            return False
    return not asked.region or asked.region in listed(equal.get("aws:RequestedRegion", asked.region))


def listed(value: Any) -> list[Any]:
    """Return what may be one or a list of them as a list."""
    return value if isinstance(value, list) else [value]
