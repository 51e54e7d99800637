"""Who judges a simulation: a model of its own, fed by what is seen on the wire, in the pool and in the files.

Nothing here asks the code under test how it is doing. Places are counted in blocks of 512 bytes as bits of an integer.
"""

from __future__ import annotations

import base64
import itertools
import json
import struct
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any
from zlib import crc32

from farshore.blocks import tree
from farshore.blocks.digest import ZERO_LEAF, leaf_digest
from farshore.units import LEAF_SIZE
from sim.platform import Pool
from sim.runtime import Violation, hub

SECTOR = 512
_HEADER = struct.Struct(">4sBBHIIIII")
_RECORD = struct.Struct(">IIII")


def bits(offset: int, length: int) -> int:
    """Return the places of ``[offset, offset + length)``."""
    low, high = offset // SECTOR, -(-(offset + length) // SECTOR)
    return ((1 << high - low) - 1) << low


def size_of(places: int) -> int:
    return places.bit_count() * SECTOR


@dataclass
class Attempt:
    """One call of replicate(), as the wire and the pool show it."""

    process: Any
    number: int
    checkpoint: str
    level: int
    mark: int
    drafts: dict[str, str] = field(default_factory=dict)
    outstanding: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    chunks: dict[str, list[list[tuple[int, int]]]] = field(default_factory=dict)
    over: bool = False


@dataclass
class Wire:
    """What one end of a connection has sent. ``parts``: where each frame begins, and its header and meta part end."""

    at: int = 0
    waiting: bytearray = field(default_factory=bytearray)
    parts: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Journal:
    """What a journal has promised."""

    begun_as: str = ""
    draft_key: str = ""
    subject: dict[str, Any] = field(default_factory=dict)
    durable: int = 0
    losses: int = 0
    adopted: int = 0
    size: int = 0
    copied: bool = False
    taken: bool = False
    sought: bool = False
    sealed: str = ""


class Oracle:
    """Judges; raises Violation, which ends the simulation."""

    def __init__(self, pool: Pool, group: str, budget: int) -> None:
        self.pool = pool
        self.group = group
        self.budget = budget
        self.sources: dict[tuple[str, str], bytes] = {}
        self.disks: tuple[str, ...] = ()
        self.orders: dict[str, dict[str, Any]] = {}
        self.published: dict[str, dict[str, Any]] = {}
        self.attempts: list[Attempt] = []
        self.journals: dict[tuple[str, str], Journal] = {}
        self.sessions: dict[int, dict[str, Any]] = {}
        self.opens: dict[tuple[int, int], dict[str, Any]] = {}
        self.top: dict[tuple[str, int], tuple[int, int]] = {}
        self.reads: dict[tuple[int, int], tuple[int, int, int, list[tuple[int, int]]]] = {}
        self.questions: dict[tuple[int, int], int] = {}
        self.wires: dict[int, Wire] = {}
        self.stamp = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.withdrawn: set[str] = set()
        self.peak = 0
        self.roots: dict[tuple[str, str], str] = {}

    # The wire -------------------------------------------------------------------------------------------------------

    def sent(self, socket: Any, data: bytes) -> None:
        """Follow the frames that a process hands to a connection."""
        wire = self.wires.setdefault(socket.fd, Wire())
        stream = wire.waiting
        stream += data
        while len(stream) >= _HEADER.size:
            magic, kind, flags, _reserved, request, meta_size, payload_size, _, _ = _HEADER.unpack_from(stream)
            if magic != b"FSH1":
                raise Violation(f"{socket.process.name} sends what is no frame")
            end = _HEADER.size + meta_size + payload_size
            if not wire.parts or wire.parts[-1][0] < wire.at:
                wire.parts.append((wire.at, wire.at + _HEADER.size, wire.at + _HEADER.size + meta_size))
                self.counts["frames compressed"] += flags & 1
            if len(stream) < end:
                # The payload of a large frame does not matter here: look at its meta part when that is whole.
                return
            meta = bytes(stream[_HEADER.size : _HEADER.size + meta_size])
            del stream[:end]
            wire.at += end
            self.frame(socket, kind, request, meta)

    def damaged(self, socket: Any, offset: int) -> int | None:
        """Return up to where ``socket`` may be read when the byte at ``offset`` is wrong: the part that says so."""
        parts = self.wires[socket.peer.fd].parts
        index = bisect_right(parts, offset, key=itemgetter(0)) - 1
        return next((end for end in parts[index][1:] if offset < end), None) if index >= 0 else None

    def frame(self, socket: Any, kind: int, request: int, meta: bytes) -> None:
        self.counts["frames"] += 1
        if kind == 2:
            text = json.loads(meta)["grant"].partition(".")[0]
            grant = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            self.opens[socket.fd, request] = grant
        elif kind == 3:
            grant = self.opens.get((socket.peer.fd, request)) if socket.peer is not None else None
            if grant is None:
                return
            number = json.loads(meta)["session"]
            self.sessions[number] = grant
            key = (grant["session_id"], grant["epoch"])
            before = self.top.get(key, (0, 0))
            if grant["term"] < before[0]:
                raise Violation(f"I7: the source opened term {grant['term']} after {before[0]}")
            if grant["term"] > before[0]:
                self.top[key] = (grant["term"], next(self.stamp))
        elif kind in {4, 9}:
            self.questions[socket.fd, request] = next(self.stamp)
        elif kind in {5, 10}:
            self._told_of_a_disk(socket, request, meta)
        elif kind == 6:
            self._read(socket, request, meta)
        elif kind in {7, 8}:
            self._data(socket, request, meta)
        elif kind == 12:
            # The source forgets a session that was closed, with its term.
            grant = self.sessions.get(struct.unpack_from(">Q", meta)[0])
            if grant is not None:
                self.top.pop((grant["session_id"], grant["epoch"]), None)
        elif kind == 13:
            self._refused(socket, request)

    def _read(self, socket: Any, request: int, meta: bytes) -> None:
        session, disk = struct.unpack_from(">QI", meta)
        ranges = list(struct.iter_unpack(">QI", meta[12:]))
        self.reads[socket.fd, request] = (next(self.stamp), session, disk, ranges)
        grant = self.sessions.get(session)
        if grant is None:
            return
        key = grant["disks"][disk]["disk_key"]
        attempt = self._attempt(socket.process, grant)
        if attempt is None:
            return
        waiting = attempt.outstanding.setdefault(key, {})
        attempt.chunks.setdefault(key, []).append(ranges)
        for offset, length in ranges:
            waiting[offset, length] = bits(offset, length)
            attempt.asked[key] = attempt.asked.get(key, 0) | bits(offset, length)
        self._judge_flow(attempt, key)

    def _data(self, socket: Any, request: int, meta: bytes) -> None:
        session, disk, count, _leaves = struct.unpack_from(">QIII", meta)
        peer = socket.peer
        asked = self.reads.get((peer.fd, request)) if peer is not None else None
        grant = self.sessions.get(session)
        if grant is None or asked is None:
            return
        self._judge_term(grant, asked[0], "data")
        key = grant["disks"][disk]["disk_key"]
        attempt = self._attempt(peer.process, grant)
        if attempt is None:
            return
        at = struct.calcsize(">QIII16s")
        for offset, length in struct.iter_unpack(">QI", meta[at : at + count * 12]):
            if length >> 31:
                self._settle(attempt, key, offset, length & 0x7FFFFFFF)

    def _told_of_a_disk(self, socket: Any, request: int, meta: bytes) -> None:
        """Judge a page of a listing, or of digests."""
        peer = socket.peer
        asked = self.questions.get((peer.fd, request)) if peer is not None else None
        grant = self.sessions.get(struct.unpack_from(">Q", meta)[0])
        if grant is not None and asked is not None:
            self._judge_term(grant, asked, "a listing, or digests,")

    def _judge_term(self, grant: dict[str, Any], asked: int, what: str) -> None:
        """What a term asks for after a higher one has opened is answered by errors alone."""
        top = self.top.get((grant["session_id"], grant["epoch"]))
        if top is not None and grant["term"] < top[0] and asked > top[1]:
            raise Violation(f"I7: {what} was served to term {grant['term']} after term {top[0]} had opened")

    def _refused(self, socket: Any, request: int) -> None:
        """What was answered by an error is not in flight any more."""
        peer = socket.peer
        asked = self.reads.get((peer.fd, request)) if peer is not None else None
        grant = self.sessions.get(asked[1]) if asked is not None else None
        attempt = self._attempt(peer.process, grant) if grant is not None else None
        if attempt is not None and asked is not None and grant is not None:
            for offset, length in asked[3]:
                self._settle(attempt, grant["disks"][asked[2]]["disk_key"], offset, length)

    def abandoned(self, frame: bytes) -> None:
        """Nobody waits any more for what a process has asked: its answer is dropped as it comes and needs no room."""
        if not frame:
            return  # it was not asked yet
        _, kind, _, _, _, meta_size, _, _, _ = _HEADER.unpack_from(frame)
        if kind != 6:
            return
        meta = frame[_HEADER.size : _HEADER.size + meta_size]
        number, disk = struct.unpack_from(">QI", meta)
        grant = self.sessions.get(number)
        process = hub().current.process if hub().current is not None else None
        attempt = self._attempt(process, grant) if grant is not None else None
        if attempt is not None and grant is not None:
            for offset, length in struct.iter_unpack(">QI", meta[12:]):
                self._settle(attempt, grant["disks"][disk]["disk_key"], offset, length)

    def _attempt(self, process: Any, grant: dict[str, Any]) -> Attempt | None:
        for attempt in reversed(self.attempts):
            if attempt.process is process and not attempt.over and grant["session_id"].endswith(attempt.checkpoint):
                return attempt
        return None

    def source_died(self) -> None:
        """The source keeps its sessions in memory: after its death a lower term may open first."""
        self.top.clear()
        self.sessions.clear()

    # Flow (I10, I8) -------------------------------------------------------------------------------------------------

    def _judge_flow(self, attempt: Attempt, key: str) -> None:
        mine = sum(size_of(left) for left in attempt.outstanding.get(key, {}).values())
        if mine > attempt.level:
            raise Violation(f"I10: disk {key} has {mine} bytes in flight, over its level of {attempt.level}")
        process = attempt.process
        total = sum(
            size_of(left)
            for other in self.attempts
            if other.process is process and not other.over
            for disk in other.outstanding.values()
            for left in disk.values()
        )
        self.peak = max(self.peak, total)
        if total > self.budget:
            raise Violation(f"I10: the node has {total} bytes in flight, over its budget of {self.budget}")
        journal = self._journal_of(attempt, key)
        exposed = size_of(attempt.asked.get(key, 0) & ~(journal.durable if journal else 0))
        if exposed > attempt.level + attempt.mark:
            raise Violation(
                f"I8: a crash now would make {exposed} bytes of {key} travel again, "
                f"more than {attempt.level} + {attempt.mark}"
            )

    def _journal_of(self, attempt: Attempt, key: str) -> Journal | None:
        for (machine, _), journal in self.journals.items():
            if (
                machine == attempt.process.machine.name
                and journal.subject.get("disk_key") == key
                and (journal.subject.get("checkpoint_id") == attempt.checkpoint)
            ):
                return journal
        return None

    def _settle(self, attempt: Attempt, key: str, offset: int, length: int) -> None:
        waiting = attempt.outstanding.get(key)
        if not waiting:
            return
        gone = bits(offset, length)
        for place in list(waiting):
            if waiting[place] & gone:
                left = waiting[place] & ~gone
                if left:
                    waiting[place] = left
                else:
                    del waiting[place]

    def written(self, draft_key: str, offset: int, length: int) -> None:
        """A write has returned, or failed: its bytes are not in flight any more."""
        self.counts["writes"] += 1
        process = hub().current.process if hub().current is not None else None
        key = self.pool.disk_of.get(draft_key)
        for attempt in self.attempts:
            if attempt.process is process and not attempt.over and key is not None:
                self._settle(attempt, key, offset, length)

    def failed(self, draft_key: str, offset: int) -> None:
        """A write has failed for good: nothing of its chunk is in flight any more."""
        process = hub().current.process if hub().current is not None else None
        key = self.pool.disk_of.get(draft_key)
        for attempt in self.attempts:
            if attempt.process is process and not attempt.over and key is not None:
                for ranges in attempt.chunks.get(key, ()):
                    if any(low <= offset < low + size for low, size in ranges):
                        for low, size in ranges:
                            self._settle(attempt, key, low, size)

    # Journals (I2, I8) ----------------------------------------------------------------------------------------------

    def synced(self, machine: str, path: str, content: bytes) -> None:
        """A journal was made durable: what it says now has to be so, whatever comes."""
        if not path.endswith("/journal"):
            return
        self.counts["marks"] += 1
        known = self.journals.get((machine, path))
        found = read_journal(content)
        same = known is not None and (known.begun_as, known.adopted) == (found.begun_as, found.adopted)
        before = known.durable if known is not None and same else 0
        if known is not None and same:
            if found.losses == known.losses and known.durable & ~found.durable:
                raise Violation(f"I8: durable progress of {found.draft_key} has shrunk")
            if found.losses > known.losses:
                if (
                    known.draft_key not in self.pool.lost
                    and not known.sought  # it was judged then
                    and self.pool.abandoned.get(known.draft_key, machine) == machine
                    and self.pool.sealed_by.get(known.draft_key, machine) == machine  # else it is another node's point
                ):
                    raise Violation(f"I8: the journal gave up the draft {known.draft_key}, which was not lost")
                before = 0
            if found.sought and not known.sought and known.draft_key in self.pool.drafts:
                raise Violation(f"I8: the journal misses the draft {known.draft_key}, which is there")
        self.counts["takeovers"] += found.taken and not (same and known is not None and known.taken)
        self.journals[machine, path] = found
        draft = self.pool.drafts.get(found.draft_key)
        fresh = found.durable & ~before
        if fresh:
            self._judge_durable(found, draft, fresh)
        if found.copied and draft is not None and not (same and known is not None and known.copied):
            self._judge_copied(found, draft)

    def _judge_copied(self, journal: Journal, draft: Any) -> None:
        source = self.sources[journal.subject["source_point"], journal.subject["disk_key"]]
        if draft.durable[: len(source)] != source or any(draft.durable[len(source) :]):
            where = _differing(bytes(draft.durable), source)
            raise Violation(f"I2: {journal.draft_key} is recorded as copied and is not: {where}")

    def _judge_durable(self, journal: Journal, draft: Any, fresh: int) -> None:
        source = self.sources.get((journal.subject["source_point"], journal.subject["disk_key"]))
        if source is None:
            raise Violation(f"the journal of {journal.draft_key} is about no source point")
        if draft is None:
            if journal.draft_key in self.pool.lost:
                return  # it is about to find out
            point = self.pool.point_of(journal.draft_key)
            if point not in self.pool.points:
                raise Violation(f"I2: the journal records what is durable in {journal.draft_key}, which is not there")
            content = self.pool.points[point]
        else:
            content = draft.durable
        at = 0
        while fresh:
            skip = (fresh & -fresh).bit_length() - 1
            fresh >>= skip
            at += skip
            run = (~fresh & (fresh + 1)).bit_length() - 1
            low, high = at * SECTOR, min((at + run) * SECTOR, len(source))
            if content[low:high] != source[low:high]:
                raise Violation(
                    f"I2: {low}..{high} of {journal.draft_key} is recorded as durable, and a power cut would lose it"
                )
            fresh >>= run
            at += run

    # Publication (I1, I3, I4, I7) -----------------------------------------------------------------------------------

    def put(self, key: str, data: bytes) -> None:
        """An object was created in the manifest store."""
        if not key.startswith("groups/"):
            return
        body = json.loads(data)
        if "refused_for" in body:
            return
        self.counts["published"] += 1
        identity = body["checkpoint_id"]
        order = self.orders.get(identity)
        if order is None:
            raise Violation(f"I3: {identity} was published, and nobody ordered it")
        if sorted(disk["disk_key"] for disk in body["disks"]) != sorted(self.disks):
            raise Violation(f"I3: {identity} was published without all of its disks")
        for other in self.published.values():
            if (other["epoch"], other["sequence"]) == (body["epoch"], body["sequence"]):
                raise Violation(f"I3: {identity} and {other['checkpoint_id']} hold the same place")
            if other["epoch"] > body["epoch"]:
                raise Violation(f"I7: {identity} of epoch {body['epoch']} was published after {other['epoch']}")
        for disk in body["disks"]:
            self._judge_disk(identity, order, disk)
        self.published[identity] = body

    def _judge_disk(self, identity: str, order: dict[str, Any], disk: dict[str, Any]) -> None:
        key, point = disk["disk_key"], disk["point"]
        if disk["source_point"] != order["point"]:
            raise Violation(f"I1: {identity} names source point {disk['source_point']}, not {order['point']}")
        source = self.sources[order["point"], key]
        content = self.pool.points.get(point)
        if content is None:
            raise Violation(f"I3: point {point} of {identity} is not sealed")
        if len(source) != disk["size_bytes"]:
            raise Violation(f"I1: {identity} has {disk['size_bytes']} bytes for a disk of {len(source)}")
        if content[: len(source)] != source or any(content[len(source) :]):
            raise Violation(f"I1: {identity} is not its source point: {_differing(content, source)} of {key}")
        if disk["tree_root"] != self.root_of(order["point"], key):
            raise Violation(f"I1: the digest tree of {key} in {identity} is not that of its content")

    def root_of(self, point: str, key: str) -> str:
        """Return the root that the tree of a source point's disk has, made from its bytes."""
        known = self.roots.get((point, key))
        if known is None:
            source = self.sources[point, key]
            leaves = [
                (at // LEAF_SIZE, digest)
                for at in range(0, len(source), LEAF_SIZE)
                if (digest := leaf_digest(source[at : at + LEAF_SIZE])) != ZERO_LEAF
            ]
            nodes: dict[bytes, bytes] = {}
            known = tree.update(None, len(source), leaves, nodes.__getitem__, nodes.__setitem__).root.hex()
            self.roots[point, key] = known
        return known

    def told(self, levels: tuple[int, ...], disks: Any) -> None:
        """Judge how the windows of a cycle's disks have moved, by what the cycle tells."""
        for disk in disks:
            at = disk.level_changes[0].from_bytes if disk.level_changes else disk.level_bytes
            for change in disk.level_changes:
                steps = levels.index(change.to_bytes) - levels.index(change.from_bytes)
                if change.from_bytes != at or steps not in {1, -1, -2}:
                    raise Violation(f"I11: {disk.disk_key} went {steps} levels at once: {change.reason}")
                at = change.to_bytes
                self.counts["levels up" if steps > 0 else "levels down"] += 1

    def dropped(self, point: str) -> None:
        for identity, body in self.published.items():
            if identity not in self.withdrawn and point in {disk["point"] for disk in body["disks"]}:
                raise Violation(f"I4: point {point} of {identity} was dropped")

    def unchanged(self) -> None:
        """Every published point is what it was."""
        for identity, body in self.published.items():
            if identity in self.withdrawn:
                continue
            for disk in body["disks"]:
                if self.pool.points.get(disk["point"]) != self.pool.frozen.get(disk["point"]):
                    raise Violation(f"I4: point {disk['point']} of {identity} has changed")


def _differing(content: bytes, source: bytes) -> str:
    for at in range(0, len(source), SECTOR):
        if content[at : at + SECTOR] != source[at : at + SECTOR]:
            return f"first at {at}"
    return "behind the end"


def read_journal(content: bytes) -> Journal:
    """Read a journal by the text of docs/internals/journal.md, up to the first record that is not whole."""
    found = Journal(size=len(content))
    at = sequence = 0
    while at + _RECORD.size <= len(content):
        crc, length, number, kind = _RECORD.unpack_from(content, at)
        stop = at + _RECORD.size + length
        if stop > len(content) or number != sequence or crc32(content[at + 4 : stop]) != crc:
            break
        body = content[at + _RECORD.size : stop]
        if kind == 1:
            begin = json.loads(body)
            found.draft_key, found.subject = begin["draft_key"], begin["subject"]
            found.begun_as = found.draft_key
        elif kind == 2:
            for start, end in _ranges(body):
                found.durable |= bits(start, end - start)
        elif kind == 4:
            found.sealed = json.loads(body)["point"]
        elif kind == 5:
            found.losses += 1
            found.draft_key = json.loads(body)["draft_key"]
            found.durable, found.copied, found.sought = 0, False, False
        elif kind == 6:
            found.copied = True
        elif kind == 10:  # the draft is one of another source point from here on
            found.subject, found.durable, found.copied = json.loads(body), 0, False
            found.adopted += 1
        elif kind == 13:
            found.sought = True
        elif kind == 12 and len(body) > 1:
            found.taken = True
        at = stop
        sequence += 1
    return found


def _ranges(body: bytes) -> list[tuple[int, int]]:
    numbers, value, shift = [], 0, 0
    for byte in body:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(value)
            value = shift = 0
    found, at = [], 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        found.append((at + gap, at + gap + length))
        at += gap + length
    return found
