"""Manifests as objects of a store: their keys, their bytes, which one is newest."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

from pydantic import ValidationError

from farshore.errors import Corruption, Invalid, NotFound
from farshore.model.checkpoint import Manifest
from farshore.platforms.contract import ManifestStore

#: What the keys of all manifests begin with.
GROUPS: Final = "groups/"
_KEY: Final = re.compile(r"^groups/([^/]+)/(\d{10})-([^/]+)\.json$")


def key_of(manifest: Manifest) -> str:
    """Return the key under which a manifest is published."""
    return f"{prefix_of(manifest.group_id)}{manifest.sequence:010d}-{manifest.checkpoint_id}.json"


def prefix_of(group_id: str) -> str:
    """Return what the keys of a group begin with."""
    return f"{GROUPS}{group_id}/"


def parse_key(key: str) -> tuple[str, int, str] | None:
    """Return ``(group id, sequence, checkpoint id)`` of a manifest's key; None for any other key."""
    match = _KEY.match(key)
    return (match[1], int(match[2]), match[3]) if match else None


def validate(manifest: Manifest) -> Manifest:
    """Return a manifest that is fit to be published.

    Raises:
        Invalid: it is not; ``field`` names what is wrong.
    """
    if not manifest.disks:
        raise Invalid("a checkpoint without disks protects nothing", code="manifest", field="disks")
    keys = [disk.disk_key for disk in manifest.disks]
    for index, disk in enumerate(manifest.disks):
        where = f"disks[{index}]"
        if disk.disk_key in keys[:index]:
            raise Invalid(f"disk {disk.disk_key} is listed twice", code="manifest", field=f"{where}.disk_key")
        if not disk.point or disk.size_bytes <= 0 or not re.fullmatch(r"[0-9a-f]{64}", disk.tree_root):
            raise Invalid(f"disk {disk.disk_key} is not complete", code="manifest", field=where)
    if not 0 <= manifest.sequence < 10**10:
        raise Invalid("the sequence is out of its range", code="manifest", field="sequence")
    if parse_key(key_of(manifest)) is None:
        raise Invalid("group and checkpoint need plain names", code="manifest", field="checkpoint_id")
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Return the object's bytes: JSON with sorted keys, so that equal manifests are equal bytes."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"


def digest(manifest: Manifest) -> str:
    """Return the SHA-256 of what a manifest says: equal for equal manifests, whatever wrote their bytes."""
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def decode(data: bytes, key: str) -> Manifest:
    """Return the manifest in an object.

    Raises:
        Corruption: it is none, or not the one that the key names.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise Corruption(f"object {key} is no manifest: {error}", code="manifest-damaged", key=key) from error
    if key_of(manifest) != key:
        raise Corruption(f"object {key} holds another checkpoint", code="manifest-damaged", key=key)
    return manifest


def is_refusal(data: bytes) -> bool:
    """Say whether an object was put in a manifest's place to keep it from being published (see ``publish``)."""
    try:
        body = json.loads(data)
    except ValueError:
        return False
    return isinstance(body, dict) and "refused_for" in body


def load_group(store: ManifestStore, group_id: str) -> list[Manifest]:
    """Return the published manifests of a group, oldest first (by epoch, then sequence).

    Raises:
        Corruption: one is damaged.
    """
    found = []
    for key in store.list(prefix_of(group_id)):
        if parse_key(key) is None:
            continue
        try:
            data = store.get(key)
        except NotFound:  # withdrawn between the two calls
            continue
        if not is_refusal(data):
            found.append(decode(data, key))
    return sorted(found, key=lambda manifest: (manifest.epoch, manifest.sequence))


def newest(store: ManifestStore, group_id: str) -> Manifest | None:
    """Return the newest published checkpoint of a group."""
    found = load_group(store, group_id)
    return found[-1] if found else None
