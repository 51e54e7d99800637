"""The life of a machine's checkpoints in AWS, told to the platform as the engine tells it, before the double of AWS.

Three phases: ``seed`` copies all, ``delta`` what changed since, ``retire`` takes everything away again. Whatever goes
wrong is answered by duty: what may pass is called again with the same keys; what is lost is given up and begun anew by
the next term, under keys of its own. What is published says from which point it was made, and is judged by its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from doubles import aws_site
from doubles.aws import AwsDouble
from doubles.aws.sparse import extents
from farshore import durable
from farshore.errors import Conflict, FarshoreError, NotFound, Reconnect, RestartFromCheckpoint, Retry
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.attached import AttachedTarget
from farshore.platforms.aws.ebs import BLOCK
from farshore.platforms.aws.manifests import S3Manifests
from farshore.platforms.aws.target import AwsTarget
from farshore.platforms.contract import Draft, Kind, Snapshot, Target

PHASES: Final = ("seed", "delta", "retire")
GROUP: Final = "shop"
_LAST: Final = 2047
#: Attempts until a checkpoint counts as not to be had.
_ATTEMPTS: Final = 16


@dataclass(slots=True)
class Guest:
    """The machine and what its disks hold: a byte per block, for each generation of its writes."""

    machine: aws_site.Instance
    generation: int = 0
    blocks: dict[str, dict[int, bytes]] = field(default_factory=dict)
    past: dict[int, dict[str, dict[int, bytes]]] = field(default_factory=dict)

    def write(self) -> None:
        """Change both disks: a mark that says which generation it is, a block of data, one that comes and goes."""
        self.generation += 1
        now = self.generation
        for number, disk in enumerate(self.machine.volumes):
            held = self.blocks.setdefault(disk, {})
            held |= {0: bytes([now]), 10 + now: bytes([64 + now + number]), 5: bytes([now % 2])}
            held.setdefault(_LAST, b"z")
            for index in (0, 5, 10 + now, _LAST):
                self.machine.write(disk, index * BLOCK, held[index] * BLOCK)
        self.past[now] = {disk: dict(held) for disk, held in self.blocks.items()}


@dataclass(frozen=True, slots=True)
class Published:
    """A manifest: the source's point and the target's by disk."""

    point: str
    disks: dict[str, str]


class Site:
    """What a node has open, and its notes: made anew by whoever takes over from one that died."""

    def __init__(self, account: Account, machine_id: str) -> None:
        self.machine_id = machine_id
        self.source = aws_site.source(account)
        attached = account.settings.target == "attached"
        self.target: Target = AttachedTarget(account) if attached else AwsTarget(account)
        self.manifests = S3Manifests(account)
        self._notes = account.settings.folder / "notes"

    def published(self, number: int) -> Published | None:
        """Return the manifest of a checkpoint."""
        try:
            return Published(**json.loads(self.manifests.get(_manifest(number))))
        except NotFound:
            return None

    def checkpoint(self, number: int, term: int, base: Published | None) -> Published:
        """Take, copy and publish a checkpoint; called again with the same term it goes on."""
        point = _point(number, term)
        bases: dict[str, str | None] = dict.fromkeys(base.disks, base.point) if base else {}
        snapshot = self.source.snapshot(GROUP, point, [self.machine_id], bases, "machine")
        done = Published(point, {one.disk_key: self._copy(snapshot, one.disk_key, base) for one in snapshot.disks})
        text = json.dumps({"point": done.point, "disks": done.disks}).encode()
        if not self.manifests.put_if_absent(_manifest(number), text) and self.published(number) != done:
            raise RestartFromCheckpoint(f"checkpoint {number} was published by another term")
        self.source.release(GROUP, point, [self.machine_id], applied=True)
        for disk in done.disks:
            self.target.abandon(_key(point, disk))  # what is left of a draft that is a point
        return done

    def _copy(self, snapshot: Snapshot, disk: str, base: Published | None) -> str:
        """Copy a disk as a cycle does: what it has copied and sealed is noted before the next step."""
        about, note = snapshot.disk(disk), self._note(snapshot.point_id, disk)
        below = base if about.incremental else None
        known: dict[str, Any] = {
            "key": _key(snapshot.point_id, disk),
            "disk": disk,
            "size": about.size_bytes,
            "copied": False,
        }
        known |= {"base": below.disks[disk] if below else None, "sealed": None}
        if note.exists():
            known = json.loads(note.read_bytes())
        if known["sealed"] is not None and self.target.has(known["sealed"]):
            return str(known["sealed"])
        durable.write_json(note, known)
        draft = self.target.open(disk, about.size_bytes, known["base"], known["key"])
        try:
            if not known["copied"]:
                self._pass(snapshot, disk, below.point if below else None, draft)
                draft.flush()
                durable.write_json(note, known := {**known, "copied": True})
            sealed = draft.seal()
            durable.write_json(note, {**known, "sealed": sealed})
            return sealed
        finally:
            draft.close()

    def _pass(self, snapshot: Snapshot, disk: str, since: str | None, draft: Draft) -> None:
        reader, buffer = self.source.reader(snapshot, disk), memoryview(bytearray(BLOCK))
        for extent in self.source.changed(snapshot, disk, since):
            for offset in range(extent.offset, extent.offset + extent.length, BLOCK):
                if extent.kind is Kind.DATA:
                    reader.read_into(offset, buffer)
                if extent.kind is Kind.DATA and any(buffer[:1]):
                    draft.write(offset, buffer)
                else:
                    draft.write_zeroes(offset, BLOCK)

    def give_up(self, number: int, term: int) -> None:
        """Take away what a term has begun and will not end: drafts, points that were never published, its point."""
        named = set(done.disks.values()) if (done := self.published(number)) else set[str]()
        folder = self._note(_point(number, term), "x").parent
        for note in sorted(folder.glob("*.json")):
            self._discard(json.loads(note.read_bytes()), named)
            note.unlink()
        if done is None or done.point != _point(number, term):
            self.source.release(GROUP, _point(number, term), [self.machine_id], applied=False)

    def _discard(self, known: dict[str, Any], named: set[str]) -> None:
        self.target.abandon(known["key"])
        if known["sealed"] is not None:
            if known["sealed"] not in named:
                self.target.drop(known["sealed"])
        elif known["copied"]:
            try:
                draft = self.target.open(known["disk"], known["size"], known["base"], known["key"])
            except (NotFound, Conflict):
                return
            try:
                if f"draft:{known['key']}" not in self.target.points() and draft.seal() not in named:
                    self.target.drop(draft.seal())
            finally:
                draft.close()
                self.target.abandon(known["key"])

    def retire(self, numbers: Iterable[int]) -> None:
        """Take everything away: the plan is deleted."""
        for number in numbers:
            if (done := self.published(number)) is not None:
                for point in done.disks.values():
                    self.target.drop(point)
                self.manifests.tombstone(_manifest(number))
        self.source.untrack(self.machine_id)
        self.source.sweep([])

    def _note(self, point: str, disk: str) -> Path:
        folder = self._notes / point
        durable.make_dir(folder)
        return folder / f"{disk.replace('/', '-')}.json"


def insist(site: Site, number: int, term: int, base: Published | None) -> tuple[Published, int]:
    """Do a checkpoint as the engine does when calls fail; return it with the term that got through."""
    errors: list[str] = []
    for _ in range(_ATTEMPTS):
        try:
            return site.checkpoint(number, term, base), term
        except (Retry, Reconnect) as error:
            errors.append(str(error))
        except FarshoreError as error:
            errors.append(str(error))
            patiently(partial(site.give_up, number, term))
            term += 1
            if (done := site.published(number)) is not None:
                return done, term
    raise AssertionError(f"checkpoint {number} did not come through: {errors}")


def patiently(call: Callable[[], None]) -> None:
    """Call what takes things away until it is through; the engine does so in every round."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            return call()
        except FarshoreError:
            if not left:
                raise
    return None


class Stage:
    """An account with one machine, and eyes of its own on what is there. Made anew for each piece."""

    def __init__(self, aws: AwsDouble, shared: Account, scratch: Path, *, attached: bool) -> None:
        """``attached``: drafts are written to volumes, not block by block."""
        aws.clear()
        aws_site.make_bucket(aws)
        self.aws = aws
        self.guest = Guest(aws_site.Instance(aws))
        self.settings = aws_site.config(aws, scratch, **(aws_site.node_machine(aws) if attached else {}))
        self.account = aws_site.account(self.settings, shared)
        self._before = set(self.aws.things())

    def site(self) -> Site:
        """Return what a node that has just started has."""
        return Site(self.account, self.guest.machine.machine_id)

    def wrong(self, done: Published) -> list[str]:
        """Say what is wrong with a published checkpoint: each disk has to hold one generation, the same for all."""
        texts, generations = [], set[int]()
        if set(done.disks) != set(self.guest.machine.volumes):
            texts.append(f"{done.point} has the disks {sorted(done.disks)}")
        for disk, point in done.disks.items():
            found = _blocks(self.aws.snapshot(point))
            generation = found.get(0, b"\0")[0]
            generations.add(generation)
            wanted = {index: byte * BLOCK for index, byte in self.guest.past.get(generation, {}).get(disk, {}).items()}
            if {index: data for index, data in wanted.items() if any(data)} != found:
                texts.append(f"{disk} of {done.point} is not what generation {generation} held: {sorted(found)}")
        if len(generations) > 1:
            texts.append(f"{done.point} has bytes of the generations {sorted(generations)}")
        return texts

    def orphans(self) -> list[str]:
        """Name what was not there before the story began; the machine's own things are not."""
        return sorted(set(self.aws.things()) - self._before)

    def manifests(self) -> int:
        """Return how many manifests there are that are no tombstones."""
        listed = self.aws.client("s3").list_objects_v2(Bucket=aws_site.BUCKET)
        return sum("/manifests/" in row["Key"] and row["Size"] > 0 for row in listed.get("Contents", ()))


def _blocks(path: Path) -> dict[int, bytes]:
    """Return the blocks of an image that are not zero."""
    found = {}
    with path.open("rb") as image:
        for start, end in extents(image.fileno(), path.stat().st_size):
            for index in range(start // BLOCK, -(-end // BLOCK)):
                image.seek(index * BLOCK)
                data = image.read(BLOCK)
                if any(data):
                    found[index] = data
    path.unlink()
    return found


def _point(number: int, term: int) -> str:
    return f"cp-{number}-t{term}"


def _key(point: str, disk: str) -> str:
    return f"{point}/{disk}"


def _manifest(number: int) -> str:
    return f"groups/{GROUP}/{number:06}"
