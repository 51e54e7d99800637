"""The tags on all that is ours. Whatever a crash leaves is found by them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final
from uuid import UUID, uuid5

#: On everything: which site's, by its bucket and prefix. Two sites may share an account.
SITE: Final = "farshore:site"
#: What it is: :data:`DRAFT_ROLE`, ``source`` (of a point that is read), ``base`` (of a point that was applied),
#: ``capture`` (of a volume, on its way to be a point), ``volume`` (that a draft is written to).
ROLE: Final = "farshore:role"
#: Of a target; a point once it is completed.
DRAFT_ROLE: Final = "draft"
#: A target's: the draft's key, the disk, its true size in bytes and the base that it grows on.
DRAFT: Final = "farshore:draft"
DISK: Final = "farshore:disk"
SIZE: Final = "farshore:size"
BASE: Final = "farshore:base"
#: On a snapshot of a volume: the attempt that has taken it. On a volume of a draft: the machine of the node.
SEAL: Final = "farshore:seal"
NODE: Final = "farshore:node"
#: A source's: the point, its group and the machine.
POINT: Final = "farshore:point"
GROUP: Final = "farshore:group"
MACHINE: Final = "farshore:machine"
#: Before the name of a lease: a point that has such a tag is not dropped.
LEASE: Final = "farshore:lease:"
#: Of a run that made machines, volumes, interfaces and groups.
TAG: Final = "farshore:tag"
#: On a fenced machine, with the epoch.
FENCE: Final = "farshore:fence"
#: On an instance of the operator's that tries probes in drills: the site that it does this for.
HELPER: Final = "farshore:helper"
NAME: Final = "Name"

_TOKENS: Final = UUID("6b0d6c0e-5a1f-4f6e-9d43-0f0f53a7c2d1")
#: A tag's value has 256 characters at most, its key 128.
_VALUE_MAX: Final = 256
_KEY_MAX: Final = 128


def site_of(bucket: str, prefix: str) -> str:
    """Return the value of :data:`SITE`."""
    return value(f"{bucket}/{prefix}")


def value(text: str) -> str:
    """Return ``text`` as a tag may hold it: cut where it is too long, with a digest that keeps it apart."""
    return text if len(text) <= _VALUE_MAX else f"{text[:200]}~{sha256(text.encode()).hexdigest()[:32]}"


def lease(tag: str) -> str:
    """Return the key of a lease's tag."""
    key = LEASE + tag
    return key if len(key) <= _KEY_MAX else LEASE + sha256(tag.encode()).hexdigest()


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as the APIs take them."""
    return [{"Key": key, "Value": value(text)} for key, text in sorted(tags.items())]


def tag_map(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of what an API has described."""
    return {tag["Key"]: tag["Value"] for tag in found.get("Tags") or ()}


def of_draft(site: str, key: str, disk_key: str, size_bytes: int, base: str | None) -> dict[str, str]:
    """Return the tags on all that is of a draft, but for its role."""
    return {
        SITE: site,
        DRAFT: key,
        DISK: disk_key,
        SIZE: str(size_bytes),
        BASE: base or "",
        NAME: f"farshore {disk_key}",
    }


def filters(**named: str) -> list[dict[str, Any]]:
    """Return filters by tags: ``filters(SITE="x")`` is by the tag that :data:`SITE` names."""
    return [{"Name": f"tag:{globals()[name]}", "Values": [value(text)]} for name, text in named.items()]


def token(*parts: str) -> str:
    """Return the ClientToken of a call: the same parts find the first call's work."""
    return str(uuid5(_TOKENS, "\n".join(parts)))
