"""Seeds: an image that is at the target already becomes the base of a disk's first cycle.

The image is taken into the pool as a point; the first cycle grows on it by a verify pass, so only what differs crosses
the link, whatever the image was. Once the disk is published, the seed goes.

    seeds/<group>/<key>-<checkpoint>.json   in the manifest store: a seed that exists, or may

The record is made before the seed and goes after it, so that a crash leaves no seed that nobody knows of.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Any, Final

from farshore.checkpoints.audit import disk_of
from farshore.checkpoints.manifest import load_group
from farshore.errors import FarshoreError, Invalid, NoSpace, NotFound, Permanent, Retry
from farshore.model.task import ReplicateDisk, ReplicateParams
from farshore.platforms.contract import ManifestStore, Target
from farshore.platforms.existing import OLD_DISK

log = logging.getLogger(__name__)

#: Makes a point of an existing image: ``(disk key, size, image, key) -> point``. See ``Platform.adopt``.
Adopt = Callable[[str, int, str, str], str]
#: A seed whose disk was never published is of no use after this long.
STALE_AFTER_S: Final = 2 * 86400.0


def take_in(
    params: ReplicateParams, manifests: ManifestStore, adopt: Adopt | None, cancel: threading.Event | None
) -> ReplicateParams:
    """Return ``params`` in which disks that have a seed, and no base yet, have it as their base.

    The same disk and image give the same seed, whichever checkpoint asks.

    Raises:
        NotFound, Invalid: the image is not there, or must not be taken.
        NoSpace: the pool is full.
        Retry: ``cancel`` was set.
    """
    disks = []
    for disk in params.disks:
        if cancel is not None and cancel.is_set():
            raise Retry("the cycle was cancelled", code="cancelled", hint="What is durable is kept.")
        # A platform that takes in no disks of old primaries copies them whole.
        wanted = (disk.seed is not None or (disk.old_disk is not None and adopt is not None)) and not disk.base_point
        disks.append(_take_in(disk, params, manifests, adopt) if wanted else disk)
    return params.model_copy(update={"disks": tuple(disks)})


def _take_in(
    disk: ReplicateDisk, params: ReplicateParams, manifests: ManifestStore, adopt: Adopt | None
) -> ReplicateDisk:
    # What was the primary before is nearer to the source than any image.
    image = f"{OLD_DISK}{disk.old_disk}" if disk.old_disk is not None else disk.seed
    if adopt is None or image is None:
        raise Permanent(
            f"the target's platform takes in no image as a seed of disk {disk.disk_key}",
            code="seed-unsupported",
            hint="Take `seed` out of the plan.",
            field="seed",
        )
    head = params.manifest
    identity = f"{head.group_id}\n{disk.disk_key}\n{disk.size_bytes}\n{image}"
    key = f"seed.{sha256(identity.encode()).hexdigest()[:24]}"
    record = {"disk_key": disk.disk_key, "size_bytes": disk.size_bytes, "key": key, "at": time.time()}
    manifests.put_if_absent(f"seeds/{head.group_id}/{key}-{head.checkpoint_id}.json", json.dumps(record).encode())
    log.info("taking in %s as a seed of disk %s", image, disk.disk_key)
    try:
        point = adopt(disk.disk_key, disk.size_bytes, image, key)
    except (NotFound, Invalid) as error:
        if disk.old_disk is None:
            raise
        # Nobody has asked for it, so it does not stand in the way.
        log.warning("disk %s is copied whole: %s", disk.disk_key, error)
        return disk.model_copy(update={"reason": f"the old primary's disk is of no use: {error.message}"})
    return disk.model_copy(
        update={"base_point": point, "base_root": None, "incremental": False, "reason": f"seeded from {image}"}
    )


def let_go(
    target: Target, manifests: ManifestStore, group_id: str | None = None, keep: Collection[str] = ()
) -> list[str]:
    """Drop the seeds of disks that are published, and stale ones; return their keys. What cannot go now stays known.

    Args:
        target: where the seeds are.
        manifests: where they are known.
        group_id: only of this group; None: of all.
        keep: checkpoint ids that are being worked on.
    """
    gone = []
    for name in manifests.list("seeds/" if group_id is None else f"seeds/{group_id}/"):
        _, group, last = name.split("/")
        try:
            record: dict[str, Any] = json.loads(manifests.get(name))
        except NotFound:
            continue
        published = any(
            disk is not None and disk.size_bytes == record["size_bytes"]
            for manifest in load_group(manifests, group)
            if (disk := disk_of(manifest, record["disk_key"])) is not None
        )
        in_use = last.removesuffix(".json").removeprefix(f"{record['key']}-") in keep
        if not published and (in_use or record["at"] > time.time() - STALE_AFTER_S):
            continue
        try:
            _drop(target, record["disk_key"], record["size_bytes"], record["key"])
        except (FarshoreError, OSError) as error:  # the checkpoint is published all the same
            log.warning("seed %s stays until the next sweep: %s", record["key"], error)
            continue
        manifests.tombstone(name)
        gone.append(str(record["key"]))
    return gone


def _drop(target: Target, disk_key: str, size_bytes: int, key: str) -> None:
    try:
        draft = target.open(disk_key, size_bytes, None, key)  # sealed: it knows its point; else it is made here
    except (NotFound, NoSpace):
        return
    try:
        if f"draft:{key}" not in target.points():
            target.drop(draft.seal())
    finally:
        draft.close()
        target.abandon(key)
