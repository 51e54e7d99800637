"""The target's end: one whole cycle, as a node runs it, and what it took."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farshore import durable
from farshore.blocks.digest import leaf_digests
from farshore.checkpoints.scrub import scrub
from farshore.checkpoints.trees import TreeStore
from farshore.cli.local.linktest.keys import SITE, SOURCE, TARGET, Keys, read
from farshore.cli.local.linktest.measure import Measure
from farshore.cli.local.linktest.serving import POINT
from farshore.cli.output import Output
from farshore.errors import Corruption, Invalid, Permanent
from farshore.model.checkpoint import Manifest
from farshore.model.grant import ALL_DISKS, Grant, GrantDisk, sign
from farshore.model.task import ReplicateDisk, ReplicateParams, ReplicateResult
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file.attached import BASE, MACHINE, AttachedTarget, base_of
from farshore.replication.flow import NodeWindow
from farshore.replication.group import replicate
from farshore.replication.usage import memory_bytes, settle
from farshore.transport.links import Link, Links
from farshore.transport.listener import DataListener
from farshore.transport.session import Session
from farshore.transport.sockets import hints
from farshore.units import CHUNK_SIZE, LEAF_SIZE
from farshore.window.budget import node_budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from farshore.model.plan import Transport
    from farshore.transport.frames import OpenedDisk

#: How long the other end is waited for.
PATIENCE_S: Final = 60.0
_EPOCH: Final = 1
#: The name of the rate limit in the window.
_BANDWIDTH: Final = "bandwidth"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the node may use: bytes in flight, bytes each second; None for what a node takes by itself."""

    node_window: int | None
    bandwidth: int | None


def run(
    out: Output,
    keys_folder: Path,
    disks: list[Path],
    address: str,
    transport: Transport,
    limits: Limits,
    *,
    listens: bool,
) -> None:
    """Pull into ``disks`` and show the figures.

    What an interrupted call has made durable lies in ``<first disk>.linktest``; the same call goes on from it.
    """
    keys = read(keys_folder, TARGET)
    if len(set(disks)) != len(disks):
        raise Invalid("a disk is named twice", code="disk", field="disk")
    state = disks[0].with_name(f"{disks[0].name}.linktest")
    settle()
    measure = Measure(out)
    with ExitStack() as stack:
        links = Links(keys.tls, give_up_s=PATIENCE_S)
        stack.callback(links.close)
        connect = _way(stack, links, keys, address, listens=listens)
        offered = _inspect(connect(), keys, transport, stack)
        if listens:
            measure.begin()  # when the other end came was not up to the link
        if len(offered) != len(disks):
            raise Invalid(
                f"the source serves {len(offered)} disk(s), and {len(disks)} were named here",
                code="linktest-disks",
                field="disk",
                hint="Name a --disk here for each one there, in the same order.",
            )
        target = AttachedTarget({one.disk_key: path for one, path in zip(offered, disks, strict=True)}, state)
        manifests = DirectoryManifests(state / "manifests")
        with measure.paused():
            bases = {one.disk_key: _base(state, manifests, one, path) for one, path in zip(offered, disks, strict=True)}
        window = NodeWindow(limits.node_window or node_budget(memory_bytes()))
        names: tuple[str, ...] = ()
        if limits.bandwidth is not None:
            window.limit(_BANDWIDTH, limits.bandwidth)
            names = (_BANDWIDTH,)
        result = replicate(
            _params(keys, offered, bases, address, transport, names, listens=listens),
            target=target,
            manifests=manifests,
            links=links,
            journal_dir=state / "journal",
            on_progress=measure.progress,
            window=window,
            grant_key=keys.grant_key,
        )
        if not _is_proven(result):
            _prove(state, manifests, target, result.manifest)
        measure.end()
        shutil.rmtree(state)
        paths = {one.disk_key: path for one, path in zip(offered, disks, strict=True)}
        carried = connect().stats()
        report = measure.report(result, carried, window, paths, hints(carried.rtt_s))
    out.show(report, lambda: measure.render(report))


def _way(stack: ExitStack, links: Links, keys: Keys, address: str, *, listens: bool) -> Callable[[], Link]:
    """Return what gives the link to the source, whichever end makes the connections."""
    if not listens:
        return lambda: links.to(address, keys.peer)
    listener = DataListener(lambda: keys.tls, adopt=links.adopt)
    stack.callback(listener.stop)
    listener.start(address)
    return lambda: links.from_peer(keys.peer)


def _is_proven(result: ReplicateResult) -> bool:
    """Say whether all that was ever written to the disks was read back; what an interrupted call wrote may not be."""
    return all(disk.read_back_bytes == disk.moved_bytes for disk in result.stats.disks) and bool(result.stats.disks)


def _prove(state: Path, manifests: DirectoryManifests, target: AttachedTarget, manifest: Manifest) -> None:
    """Read all of the disks back, and compare them with the manifest.

    Raises:
        Corruption: a disk is not what the manifest says.
    """
    verdict, *_ = scrub(manifests, target, manifest.group_id, manifest.checkpoint_id, SITE)
    if verdict.verdict != "verified":
        raise Corruption(
            verdict.reason, code="read-back", hint=f"Check the storage below the disks; remove {state} to begin again."
        )


def _inspect(link: Link, keys: Keys, transport: Transport, stack: ExitStack) -> tuple[OpenedDisk, ...]:
    """Return what the source serves. The link's connections stay open for what follows."""
    link.use(transport.connections)
    stack.callback(link.unuse)
    wanted = (GrantDisk(disk_key=ALL_DISKS, size_bytes=0, source_point=POINT, base=BASE),)
    session = Session(link, sign(_grant(keys, "inspect", wanted), keys.grant_private), _EPOCH, 4096)
    try:
        return session.open().disks
    finally:
        session.close()


def _base(state: Path, manifests: DirectoryManifests, disk: OpenedDisk, path: Path) -> str | None:
    """Return the root of the base's digest tree, made from the image; a replica has it from the cycle before."""
    if not disk.incremental:
        return None
    if not path.is_file() or path.stat().st_size != disk.size_bytes:
        raise Permanent(
            f"{path} is no copy of the base: it needs {disk.size_bytes} bytes",
            code="linktest-base",
            hint="The source sends what changed only; copy the base there first, or serve without --changed.",
        )
    name = sha256(disk.disk_key.encode()).hexdigest()[:16]
    kept = state / f"base-{name}"
    if kept.is_file():  # an interrupted call made it, before it wrote to the image
        return kept.read_text(encoding="ascii")
    trees = TreeStore(manifests, f"{BASE}-{name}")
    made = trees.update(None, disk.size_bytes, _leaves(path, disk.size_bytes))
    trees.commit(base_of(disk.disk_key), made)
    durable.write(kept, made.root.hex().encode())
    return made.root.hex()


def _leaves(path: Path, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    buffer = memoryview(bytearray(CHUNK_SIZE))
    with path.open("rb", buffering=0) as image:
        for start in range(0, size_bytes, CHUNK_SIZE):
            count = image.readinto(buffer)
            yield start // LEAF_SIZE, b"".join(leaf_digests(buffer[:count]))


def _grant(keys: Keys, mode: str, disks: tuple[GrantDisk, ...]) -> Grant:
    now = time.time()
    text = " ".join(disk.disk_key for disk in disks)
    return Grant(
        grant_id=f"gr-{mode}",
        catalog_id=SITE,
        generation=0,
        plan=SITE,
        group_id=MACHINE,
        session_id=f"se-{mode}-{sha256(text.encode()).hexdigest()[:16]}-{int(now)}",
        source_site=SITE,
        target_site=SITE,
        source_node=SOURCE,
        target_node=TARGET,
        source_thumbprint=keys.peer.thumbprint,
        target_thumbprint=keys.tls.peer.thumbprint,
        epoch=_EPOCH,
        term=1,
        disks=disks,
        mode="inspect" if mode == "inspect" else "replicate",
        not_before=now - 5,
        not_after=now + 3600,
    )


def _params(
    keys: Keys,
    offered: tuple[OpenedDisk, ...],
    bases: dict[str, str | None],
    address: str,
    transport: Transport,
    limits: tuple[str, ...],
    *,
    listens: bool,
) -> ReplicateParams:
    granted = tuple(
        GrantDisk(
            disk_key=one.disk_key,
            size_bytes=one.size_bytes,
            source_point=POINT,
            base=BASE if bases[one.disk_key] is not None else None,
        )
        for one in offered
    )
    # Named after the disks as they are, so that an interrupted call is gone on with and no other one is.
    text = " ".join(one.disk_key for one in offered)
    now = time.time()
    head = Manifest(
        checkpoint_id=f"cp-{sha256(text.encode()).hexdigest()[:16]}",
        group_id=MACHINE,
        plan=SITE,
        plan_revision=1,
        catalog_id=SITE,
        generation=0,
        epoch=_EPOCH,
        term=1,
        sequence=1,
        source_site=SITE,
        target_site=SITE,
        level="crash",
        ordered_at=now,
        taken_at=now,
        machines=(),
        disks=(),
    )
    return ReplicateParams(
        grant=sign(_grant(keys, "replicate", granted), keys.grant_private),
        address="" if listens else address,
        manifest=head,
        disks=tuple(
            ReplicateDisk(
                disk_key=one.disk_key,
                size_bytes=one.size_bytes,
                incremental=one.incremental,
                base_point=base_of(one.disk_key) if bases[one.disk_key] is not None else None,
                base_root=bases[one.disk_key],
                reason=one.reason,
            )
            for one in offered
        ),
        transport=transport,
        limits=limits,
        read_back=True,
    )
