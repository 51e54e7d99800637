"""Publication and its reverse. The sole commit point is the creation of the group's manifest object.

Two checkpoints must never hold the same place (epoch, sequence) of a group, whoever works on them. So before the
manifest a *claim* is created for the place, which says who means to take it. A claim is not a publication and needs no
cleaning:

1. The claim is ours: create the manifest.
2. The claim is another checkpoint's and that one is published: we are fenced.
3. It is another's that was never published (its node died): the checkpoint that was ordered later wins. It first makes
   the other's manifest impossible, by creating a refusal under the other's key; then it goes on as if the claim were
   its own. If the refusal cannot be created, the other was published meanwhile: case 2.

Whoever finds a refusal under its own key is fenced.

Nor must a checkpoint of a lower epoch be published after one of a higher. Who has its claim looks at those of other
epochs: a higher one fences it; where a lower one leads to a place that is free still, it is refused. Of two that claim
at the same time at least one sees the other. Crash windows: docs/internals/publication.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from farshore.checkpoints import addenda, terms, trees
from farshore.checkpoints.manifest import (
    GROUPS,
    decode,
    encode,
    is_refusal,
    key_of,
    load_group,
    parse_key,
    prefix_of,
    validate,
)
from farshore.errors import Conflict, Corruption, Fenced, NotFound, Reconnect, Retry
from farshore.model.checkpoint import Manifest
from farshore.platforms.contract import ManifestStore, Target

log = logging.getLogger(__name__)


def find(store: ManifestStore, head: Manifest) -> Manifest | None:
    """Return the published manifest of ``head``'s checkpoint, whatever else ``head`` says; None before publication.

    Raises:
        Fenced: it can never be published, for a later checkpoint took its place.
    """
    key = key_of(head)
    try:
        data = store.get(key)
    except NotFound:
        return None
    if is_refusal(data):
        raise _fenced(head, "was refused for a checkpoint that was ordered later")
    return decode(data, key)


def confirm(store: ManifestStore, found: Manifest) -> Manifest:
    """Return a manifest that :func:`find` found, durable: whoever published it may have died before it was."""
    store.put_if_absent(key_of(found), encode(found))
    return found


def publish(store: ManifestStore, manifest: Manifest) -> Manifest:
    """Publish a checkpoint and return its manifest as it is in the store.

    Publishing the same checkpoint again returns what the first call published.

    Raises:
        Invalid: the manifest is not complete.
        Fenced: another checkpoint holds the sequence, or the group has gone on to a higher epoch.
    """
    validate(manifest)
    found = find(store, manifest)
    if found is not None:
        return confirm(store, found)
    published = load_group(store, manifest.group_id)
    for other in published:
        if other.epoch > manifest.epoch or other.generation > manifest.generation:
            raise _fenced(manifest, f"is of an epoch or generation before that of {other.checkpoint_id}")
        if (other.epoch, other.sequence) == (manifest.epoch, manifest.sequence):
            raise _fenced(manifest, f"has the sequence of {other.checkpoint_id}, which is published")
    _claim(store, manifest)
    _pass_epochs(store, manifest, published)
    terms.check(store, manifest)
    if store.put_if_absent(key_of(manifest), encode(manifest)):  # the commit point
        return manifest
    found = find(store, manifest)
    if found is None:
        raise _fenced(manifest, "was taken away before it was published")
    return found


def _claim(store: ManifestStore, manifest: Manifest) -> None:
    key = f"{_claims(manifest)}{manifest.epoch:010d}-{manifest.sequence:010d}.json"
    mine = {"checkpoint_id": manifest.checkpoint_id, "ordered_at": manifest.ordered_at}
    depth = 0
    while not store.put_if_absent(key, json.dumps(mine, sort_keys=True).encode()):
        holder = _parse_claim(store.get(key), key)
        if holder["checkpoint_id"] == manifest.checkpoint_id:
            return
        if holder["ordered_at"] >= manifest.ordered_at:
            raise _fenced(manifest, f"was ordered before {holder['checkpoint_id']}, which claims its sequence")
        other_id = str(holder["checkpoint_id"])
        if not _refuse(store, manifest, manifest.sequence, other_id):
            raise _fenced(manifest, f"has the sequence of {other_id}, which is published")
        # The dead checkpoint's claim stays; ours is the next one in line.
        depth += 1
        key = f"{_claims(manifest)}{manifest.epoch:010d}-{manifest.sequence:010d}-{depth}.json"


def _claims(manifest: Manifest) -> str:
    return f"claims/{manifest.group_id}/"


def _pass_epochs(store: ManifestStore, manifest: Manifest, published: Sequence[Manifest]) -> None:
    """End where a higher epoch has a claim; refuse what of lower ones may be on its way still.

    ``published`` was read before: behind the last one of them only claims that nobody has published matter.
    """
    last = max(((one.epoch, one.sequence) for one in published if one.epoch < manifest.epoch), default=(0, 0))
    for key in store.list(_claims(manifest)):
        epoch, sequence = map(int, key.removeprefix(_claims(manifest)).removesuffix(".json").split("-")[:2])
        if epoch > manifest.epoch:
            raise _fenced(manifest, f"is of an epoch before {epoch}, which is being published")
        if last < (epoch, sequence) and epoch < manifest.epoch:
            _refuse(store, manifest, sequence, str(_parse_claim(store.get(key), key)["checkpoint_id"]))


def _refuse(store: ManifestStore, manifest: Manifest, sequence: int, other_id: str) -> bool:
    """Make the publication of another checkpoint at a place impossible; False where it is published."""
    key = f"{prefix_of(manifest.group_id)}{sequence:010d}-{other_id}.json"
    refusal = json.dumps({"refused_for": manifest.checkpoint_id}).encode()
    if not store.put_if_absent(key, refusal):
        try:
            data = store.get(key)
        except NotFound:
            return True  # published and withdrawn since; its place is free
        return is_refusal(data)
    return True


def withdraw(store: ManifestStore, target: Target, group_id: str, checkpoint_id: str) -> None:
    """Take a checkpoint away: the manifest first, then its points, then what of its trees nobody else needs.

    Before the tombstone, a note of what there is to do is kept, so that :func:`finish_withdrawals` ends what something
    stopped: a point that came into use meanwhile stays until then, though its checkpoint is gone.

    Raises:
        Conflict: a point is still used (``in-use``); the checkpoint stays as it was.
        NotFound: the group has no such checkpoint.
    """
    note = f"withdrawn/{group_id}/{checkpoint_id}.json"
    manifest = next((one for one in load_group(store, group_id) if one.checkpoint_id == checkpoint_id), None)
    if manifest is not None:
        for disk in manifest.disks:
            _check_unused(target, disk.point, checkpoint_id)
        store.put_if_absent(note, encode(manifest))
        store.tombstone(key_of(manifest))
    else:
        try:
            manifest = Manifest.model_validate_json(store.get(note))
        except NotFound:
            raise NotFound(
                f"group {group_id} has no checkpoint {checkpoint_id}",
                code="checkpoint-not-found",
                hint="It was dropped before, or never published.",
                checkpoint=checkpoint_id,
            ) from None
    try:
        _finish(store, target, manifest, note)
    except (Conflict, Retry, Reconnect) as error:
        log.info("the points of checkpoint %s stay until the next sweep: %s", checkpoint_id, error)


def _check_unused(target: Target, point: str, checkpoint_id: str) -> None:
    try:
        target.check_drop(point)
    except Conflict as error:
        raise Conflict(
            f"checkpoint {checkpoint_id} is in use: {error.message}",
            code="in-use",
            hint=error.hint or "Wait for what uses it, or end that.",
            checkpoint=checkpoint_id,
            point=point,
            cause=error.code,
        ) from error
    except NotFound:
        return  # there is nothing to drop


def _finish(store: ManifestStore, target: Target, manifest: Manifest, note: str) -> None:
    """Drop what belongs to a checkpoint whose manifest is gone, then the note of it."""
    for disk in manifest.disks:
        target.drop(disk.point)
    live = [disk.point for other in load_all(store) for disk in other.disks]
    trees.drop(store, [disk.point for disk in manifest.disks], live)
    addenda.withdraw(store, manifest)
    store.tombstone(note)


def finish_withdrawals(store: ManifestStore, target: Target) -> list[str]:
    """End what an interrupted :func:`withdraw` began; return the checkpoints that are gone now."""
    done = []
    for note in store.list("withdrawn/"):
        _, group_id, name = note.split("/")
        checkpoint_id = name.removesuffix(".json")
        try:
            manifest = Manifest.model_validate_json(store.get(note))
            if key_of(manifest) in store.list(prefix_of(group_id)):
                for disk in manifest.disks:
                    _check_unused(target, disk.point, checkpoint_id)
                store.tombstone(key_of(manifest))
            _finish(store, target, manifest, note)
        except (Conflict, Retry, Reconnect) as error:
            log.info("the points of checkpoint %s of group %s stay: %s", checkpoint_id, group_id, error)
            continue
        except NotFound:
            continue  # somebody else has ended it
        done.append(checkpoint_id)
    return done


def load_all(store: ManifestStore) -> list[Manifest]:
    """Return the published manifests of all groups.

    Raises:
        Corruption: one is damaged.
    """
    groups = {parsed[0] for key in store.list(GROUPS) if (parsed := parse_key(key))}
    return [manifest for group_id in sorted(groups) for manifest in load_group(store, group_id)]


def _parse_claim(data: bytes, key: str) -> dict[str, Any]:
    try:
        claim = json.loads(data)
        return {"checkpoint_id": str(claim["checkpoint_id"]), "ordered_at": float(claim["ordered_at"])}
    except (ValueError, KeyError, TypeError) as error:
        raise Corruption(f"object {key} is no claim", code="claim-damaged", key=key) from error


def _fenced(manifest: Manifest, why: str) -> Fenced:
    return Fenced(
        f"checkpoint {manifest.checkpoint_id} of group {manifest.group_id} {why}",
        code="stale-checkpoint",
        hint="Nothing was published; the group goes on with its newer checkpoints.",
        group=manifest.group_id,
        sequence=manifest.sequence,
        epoch=manifest.epoch,
    )
