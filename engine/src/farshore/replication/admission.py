"""What a task must be before anything is begun for it: a grant, parameters that belong to it, subjects of journals."""

from __future__ import annotations

import base64
import binascii
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from farshore.errors import Fenced, Forbidden, Invalid
from farshore.journal.state import Subject
from farshore.model.grant import Grant, verify
from farshore.model.task import ReplicateParams


def read_grant(text: str, key: Ed25519PublicKey | None) -> Grant:
    """Return the grant in ``text``, checked where we have the key. Its time is the source's to check."""
    if key is not None:
        try:
            return verify(text, key, now=time.time())
        except Fenced:
            pass  # expired: an open session does not mind, and the source refuses to open another
    try:
        body = text.partition(".")[0]
        return Grant.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, binascii.Error, ValidationError) as error:
        raise Forbidden("the task's grant is no grant", code="grant-invalid") from error


def check(params: ReplicateParams, grant: Grant) -> None:
    """Refuse parameters that do not belong together."""
    head = params.manifest
    if (head.group_id, head.epoch) != (grant.group_id, grant.epoch):
        raise Invalid("the grant is of another group or epoch than the manifest", code="grant-mismatch", field="grant")
    if not params.disks:
        raise Invalid("there is no disk to replicate", code="no-disks", field="disks")
    granted = {disk.disk_key: disk.size_bytes for disk in grant.disks}
    for index, disk in enumerate(params.disks):
        if granted.get(disk.disk_key) != disk.size_bytes:
            raise Invalid(
                f"the grant does not cover disk {disk.disk_key} with {disk.size_bytes} bytes",
                code="grant-mismatch",
                field=f"disks[{index}]",
            )


def subjects(params: ReplicateParams, grant: Grant) -> list[Subject]:
    """Return what the journals of the disks are about."""
    head = params.manifest
    granted = {disk.disk_key: disk for disk in grant.disks}
    return [
        Subject(
            group_id=head.group_id,
            checkpoint_id=head.checkpoint_id,
            disk_key=disk.disk_key,
            size_bytes=disk.size_bytes,
            source_point=granted[disk.disk_key].source_point,
            base_source_point=granted[disk.disk_key].base,
            base_point=disk.base_point,
            epoch=head.epoch,
        )
        for disk in params.disks
    ]
