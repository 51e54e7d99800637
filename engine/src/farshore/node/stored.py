"""What a site keeps beside its points for whoever comes after this control plane: manifests and site bundles.

    bundles/<catalogue>/<generation:010>-<number:010>.json

A bundle is sealed to a key that neither nodes nor control plane have; here it is bytes with a number. Bundles of a
higher generation or number are newer. Objects are created once and never changed, so that a write that breaks off
leaves the one before.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

from farshore.checkpoints import catalog
from farshore.checkpoints.manifest import digest
from farshore.errors import Conflict, Invalid, NotFound, Retry
from farshore.model.checkpoint import Manifest
from farshore.model.task import (
    BundlePutParams,
    BundlePutResult,
    CatalogCheckResult,
    MissingPoint,
    StoredManifest,
    UntrackResult,
)
from farshore.platforms.contract import ManifestStore, Platform, Target

#: What the keys of all bundles begin with.
BUNDLES: Final = "bundles/"
_KEY: Final = re.compile(r"^bundles/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/(\d{10})-(\d{10})\.json$")


def put_bundle(store: ManifestStore, params: BundlePutParams) -> BundlePutResult:
    """Keep a bundle, durable on return; then take away those that ``keep`` newer ones stand before.

    Raises:
        Invalid: the key is none of a bundle.
        Conflict: another bundle has this key; a control plane of the same generation wrote it.
    """
    parts = _KEY.match(params.key)
    if parts is None:
        raise Invalid(f"{params.key!r} is no key of a site bundle", code="object-key", field="key")
    data = params.data.encode()
    if not store.put_if_absent(params.key, data) and store.get(params.key) != data:
        raise Conflict(
            f"the site holds another bundle {params.key}",
            code="bundle-taken",
            hint="Two control planes of the same generation write to this site. Stop one of them.",
        )
    found = keys(store, parts[1])
    older = found[: found.index(params.key)]
    for key in older[: max(0, len(older) - params.keep)]:
        store.tombstone(key)
    return BundlePutResult(keys=tuple(keys(store, parts[1])))


def keys(store: ManifestStore, catalog_id: str = "") -> list[str]:
    """Return the keys of a catalogue's bundles, or of all, oldest first."""
    prefix = f"{BUNDLES}{catalog_id}/" if catalog_id else BUNDLES
    found = [(match, key) for key in store.list(prefix) if (match := _KEY.match(key))]
    return [key for match, key in sorted(found, key=lambda one: (one[0][1], int(one[0][2]), int(one[0][3])))]


def newest_bundle(store: ManifestStore, catalog_id: str = "") -> tuple[str, bytes]:
    """Return key and bytes of the newest bundle: of one catalogue, or of the only one that there is.

    Raises:
        NotFound: the store holds none.
        Conflict: it holds bundles of several catalogues, and none was named.
    """
    found = keys(store, catalog_id)
    owners = sorted({key.split("/")[1] for key in found})
    if not found:
        raise NotFound(
            "the site holds no bundle" + (f" of catalogue {catalog_id}" if catalog_id else ""),
            code="bundle-missing",
            hint="A control plane writes one as soon as a node of the site has polled it.",
        )
    if len(owners) > 1:
        raise Conflict(
            f"the site holds bundles of {len(owners)} catalogues: {', '.join(owners)}",
            code="bundle-ambiguous",
            field="catalog",
            hint="Name the one that you mean: --catalog ID. The recovery key's file says which it belongs to.",
        )
    return found[-1], store.get(found[-1])


def check(store: ManifestStore, target: Target, catalog_id: str) -> CatalogCheckResult:
    """Return what the site holds of a catalogue, and where manifests and native points disagree."""
    manifests, findings = catalog.scan(store)
    found = catalog.compare(manifests, target.points())
    ours = [manifest for manifest in manifests if manifest.catalog_id == catalog_id]
    gone = set(found.missing)
    return CatalogCheckResult(
        manifests=tuple(_in_short(manifest) for manifest in ours),
        missing=tuple(
            MissingPoint(checkpoint_id=manifest.checkpoint_id, disk_key=disk.disk_key, point=disk.point)
            for manifest in ours
            for disk in manifest.disks
            if (manifest.checkpoint_id, disk.point) in gone or not _is_whole(target, disk.point)
        ),
        orphans=found.orphans,
        drafts=found.drafts,
        foreign=len(manifests) - len(ours),
        findings=tuple(findings),
    )


def _is_whole(target: Target, point: str) -> bool:
    try:
        return target.has(point)
    except NotFound:
        return False


def _in_short(manifest: Manifest) -> StoredManifest:
    return StoredManifest(
        checkpoint_id=manifest.checkpoint_id,
        group_id=manifest.group_id,
        plan=manifest.plan,
        epoch=manifest.epoch,
        generation=manifest.generation,
        sequence=manifest.sequence,
        digest=digest(manifest),
    )


def untrack(platform: Platform, machine_id: str) -> UntrackResult:
    """Take everything of ours from a machine, and read back what is left.

    Raises:
        Retry: something is left that should be gone.
    """
    before = _traces(platform, machine_id)
    with contextlib.suppress(NotFound):  # with the machine goes what was on it
        platform.source.untrack(machine_id)
    after = _traces(platform, machine_id)
    # The old primary of a failover stays fenced: whoever lifts that has to know that another one runs.
    left = [trace for trace in after if not trace.startswith("fence ")]
    if left:
        raise Retry(
            f"machine {machine_id} still carries {', '.join(left[:5])}",
            code="not-untracked",
            hint="It is tried again; if it stays so, somebody holds the machine's images.",
            remaining=left,
        )
    return UntrackResult(
        machine_id=machine_id, removed=tuple(trace for trace in before if trace not in after), remaining=tuple(after)
    )


def _traces(platform: Platform, machine_id: str) -> list[str]:
    try:
        return platform.traces(machine_id) if platform.traces is not None else []
    except NotFound:
        return []
