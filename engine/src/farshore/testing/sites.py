"""Two sites, of files if nothing else is said, and what runs between them: for tests and measurements of data paths."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from farshore.checkpoints.manifest import newest
from farshore.model.checkpoint import Manifest
from farshore.model.grant import Grant, GrantDisk, sign
from farshore.model.plan import Transport
from farshore.model.task import ReplicateDisk, ReplicateParams
from farshore.platforms.contract import Platform, Snapshot
from farshore.platforms.file import FileMachine
from farshore.platforms.registry import open_platform
from farshore.testing.pki import TestAuthority
from farshore.transport.tls import load
from farshore.units import MIB

DEADLINE_S: Final = 60.0


class Child:
    """A process of :mod:`farshore.testing.node_process`."""

    def __init__(
        self, role: str, settings: dict[str, Any], folder: Path, name: str, within: Sequence[str] = ()
    ) -> None:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "farshore.testing.node_process", role, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )

    def line(self) -> str:
        """Return the next line of its output.

        Raises:
            AssertionError: none came in time, or it ended.
        """
        stdout = _pipe(self.process.stdout)
        ready = select.poll()  # select() knows no descriptors above 1023
        ready.register(stdout, select.POLLIN)
        text = stdout.readline() if ready.poll(DEADLINE_S * 1000) else ""
        if not text:
            raise AssertionError(f"no answer from {self.log}: {self.log.read_text(encoding='utf-8')[-4000:]}")
        return text

    def end(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Sites:
    """A source site ``alpha`` and a target site ``beta``, with the control plane's part played here."""

    def __init__(
        self,
        folder: Path,
        disks: Mapping[str, Mapping[str, int]],
        transport: Transport | None = None,
        platforms: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """``platforms``: by role, ``source`` or ``target``, the settings of a platform in the place of one of files."""
        self.folder = folder
        self.transport = transport or Transport(intermediate_checkpoint_window=8 * MIB)
        self.alpha_root, self.beta_root = folder / "alpha", folder / "beta"
        for machine_id, sizes in disks.items():
            FileMachine.create(self.alpha_root, machine_id, sizes)
        self.machine_ids = tuple(disks)
        self._platforms = platforms or {}
        self.alpha: Platform = open_platform(
            self._platforms.get("source", {"type": "file", "root": str(self.alpha_root)})
        )
        self.beta: Platform = open_platform(
            self._platforms.get("target", {"type": "file", "root": str(self.beta_root)})
        )
        self.authority = TestAuthority(folder / "pki")
        self.alpha_files = self.authority.node("alpha", "alpha-1")
        self.beta_files = self.authority.node("beta", "beta-1")
        self.alpha_tls = load(self.alpha_files.cert, self.alpha_files.key, self.alpha_files.ca)
        self.beta_tls = load(self.beta_files.cert, self.beta_files.key, self.beta_files.ca)
        self.grant_private = Ed25519PrivateKey.generate()
        self.grant_key = self.grant_private.public_key()
        self.journals = folder / "beta-node" / "journal"
        self.port = 0
        #: By role, the command that its processes run in, such as ``ip netns exec``.
        self.within: dict[str, Sequence[str]] = {}
        self._numbers = itertools.count(1)
        self._children: list[Child] = []

    def machine(self, machine_id: str) -> FileMachine:
        """Return a machine of the source."""
        return FileMachine(self.alpha_root, machine_id)

    def fill(self, machine_id: str, disk_id: str, seed: int, writes: int, size: int = 64 * 1024) -> None:
        """Write pseudo-random data at pseudo-random places of a disk."""
        machine, rng = self.machine(machine_id), random.Random(seed)  # noqa: S311
        capacity = machine.image(disk_id).stat().st_size
        for _ in range(writes):
            length = rng.randint(1, size)
            machine.write(disk_id, rng.randrange(0, capacity - length), rng.randbytes(length))

    def newest(self) -> Manifest | None:
        """Return the newest checkpoint."""
        return newest(self.beta.manifests, "grp-test")

    def point(self) -> Snapshot:
        """Take the next source point, as the control plane would order it."""
        base = self.newest()
        bases = {disk.disk_key: disk.source_point for disk in base.disks} if base else {}
        return self.alpha.source.snapshot("grp-test", f"pt-{next(self._numbers)}", self.machine_ids, bases, "group")

    def params(
        self, snapshot: Snapshot, *, term: int = 1, address: str | None = None, valid_s: float = 600, **changes: Any
    ) -> ReplicateParams:
        """Return the task that pulls ``snapshot``."""
        seeds = changes.pop("seeds", {})
        base = self.newest()
        held = {disk.disk_key: disk for disk in base.disks} if base else {}
        sequence = base.sequence + 1 if base else 1
        now = time.time()
        head = Manifest(
            checkpoint_id=changes.pop("checkpoint_id", f"cp-{snapshot.point_id}"),
            group_id="grp-test",
            plan="test",
            plan_revision=1,
            catalog_id="cat",
            generation=0,
            epoch=changes.pop("epoch", 1),
            term=term,
            sequence=changes.pop("sequence", sequence),
            parent=base.checkpoint_id if base else None,
            source_site="alpha",
            target_site="beta",
            level=snapshot.level,
            ordered_at=changes.pop("ordered_at", snapshot.taken_at - 0.1),
            taken_at=snapshot.taken_at,
            machines=snapshot.machines,
            disks=(),
        )
        grant = Grant(
            grant_id=f"gr-{next(self._numbers)}",
            catalog_id="cat",
            generation=0,
            plan="test",
            group_id="grp-test",
            session_id=f"se-{snapshot.point_id}",
            source_site="alpha",
            target_site="beta",
            source_node="alpha-1",
            target_node="beta-1",
            source_thumbprint=self.alpha_tls.peer.thumbprint,
            target_thumbprint=self.beta_tls.peer.thumbprint,
            epoch=head.epoch,
            term=term,
            disks=tuple(
                GrantDisk(
                    disk_key=disk.disk_key,
                    size_bytes=disk.size_bytes,
                    source_point=snapshot.point_id,
                    base=held[disk.disk_key].source_point if disk.disk_key in held else None,
                )
                for disk in snapshot.disks
            ),
            not_before=now - 5,
            not_after=now + valid_s,
        ).model_copy(update=changes.pop("grant", {}))
        if changes:
            raise TypeError(f"no such parameters: {sorted(changes)}")
        return ReplicateParams(
            grant=sign(grant, self.grant_private),
            address=f"127.0.0.1:{self.port}" if address is None else address,
            manifest=head,
            disks=tuple(
                ReplicateDisk(
                    disk_key=disk.disk_key,
                    size_bytes=disk.size_bytes,
                    incremental=disk.incremental,
                    base_point=held[disk.disk_key].point if disk.disk_key in held else None,
                    base_root=held[disk.disk_key].tree_root if disk.disk_key in held else None,
                    reason=disk.reason,
                    seed=seeds.get(disk.disk_key),
                )
                for disk in snapshot.disks
            ),
            transport=self.transport,
        )

    def start_source(self, port: int = 0, **extra: Any) -> Child:
        """Start the source node's process; on the port of an earlier one to take its place.

        ``dial``: it listens nowhere, and connects to the target at that address.
        """
        key = self.grant_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        files = self.alpha_files
        settings = {
            "root": str(self.alpha_root),
            "cert": str(files.cert),
            "key": str(files.key),
            "ca": str(files.ca),
            "grant_key": key,
            "port": port,
            "peer": dataclasses.asdict(self.beta_tls.peer),
            **extra,
        }
        child = self._child("source", settings)
        self.port = int(child.line().split()[1])
        return child

    def start_target(self, params: ReplicateParams, **extra: Any) -> Child:
        """Start the target node's process with one task."""
        files = self.beta_files
        settings = {
            "root": str(self.beta_root),
            "cert": str(files.cert),
            "key": str(files.key),
            "ca": str(files.ca),
            "journal_dir": str(self.journals),
            "params": params.model_dump(mode="json"),
            **extra,
        }
        return self._child("target", settings)

    def finish(self, child: Child) -> dict[str, Any]:
        """Wait for a target's end; return its last message, empty if it was killed."""
        last: dict[str, Any] = {}
        for line in _pipe(child.process.stdout):
            last = json.loads(line)
        child.process.wait(DEADLINE_S)
        return {} if "progress" in last else last

    def replicate(self, params: ReplicateParams, **extra: Any) -> dict[str, Any]:
        """Run one target process to its end."""
        return self.finish(self.start_target(params, **extra))

    def sent(self, source: Child) -> int:
        """Return the payload bytes that the source has sent since it started."""
        stdin = _pipe(source.process.stdin)
        stdin.write("sent\n")
        stdin.flush()
        return int(source.line())

    def frozen(self, snapshot: Snapshot) -> dict[str, bytes]:
        """Return the content of a source point by disk."""
        content = {}
        for disk in snapshot.disks:
            reader = self.alpha.source.reader(snapshot, disk.disk_key)
            buffer = bytearray(disk.size_bytes)
            reader.read_into(0, memoryview(buffer))
            reader.close()
            content[disk.disk_key] = bytes(buffer)
        return content

    def published(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the content of a checkpoint by disk."""
        content = {}
        for disk in manifest.disks:
            buffer = bytearray(disk.size_bytes)
            self.beta.target.read_into(disk.point, 0, memoryview(buffer))
            content[disk.disk_key] = bytes(buffer)
        return content

    def release(self, snapshot: Snapshot, *, applied: bool) -> None:
        """End the reading of a point."""
        self.alpha.source.release("grp-test", snapshot.point_id, self.machine_ids, applied=applied)

    def _child(self, role: str, settings: dict[str, Any]) -> Child:
        within = self.within.get(role, ())
        if role in self._platforms:
            settings = {**settings, "platform": self._platforms[role]}
        child = Child(role, settings, self.folder, f"{role}-{next(self._numbers)}", within)
        self._children.append(child)
        return child

    def end(self) -> None:
        """End all processes."""
        for child in self._children:
            child.end()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise AssertionError("a process is started with its pipes")
    return pipe


@contextlib.contextmanager
def sites(folder: Path, disks: Mapping[str, Mapping[str, int]], transport: Transport | None = None) -> Iterator[Sites]:
    """Two sites whose processes are ended afterwards."""
    both = Sites(folder, disks, transport)
    try:
        yield both
    finally:
        both.end()
