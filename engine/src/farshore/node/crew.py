"""The worker processes of a node, where it has processors for them: each runs replications beside the others.

A group always goes to the same process: there its connections are, and whatever an earlier try has left. The node's
byte budget and its rates are divided: a process gets an equal part of a rate while it has a cycle under it. A process
that dies fails its own tasks, with an error that says to try again, and is started anew by the next one.

Where the source node dials, its connections come in at the node's port, name the process that they are for, and are
handed over before their handshake (:mod:`farshore.transport.parts`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from farshore.errors import Retry, from_dict
from farshore.model.task import DraftCover, Progress, ReplicateParams, ReplicateResult
from farshore.node.channel import Channel
from farshore.node.config import NodeConfig
from farshore.node.log import fields
from farshore.node.worker import Call
from farshore.transport.parts import hand_over

_log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 30.0
END_TIMEOUT_S: Final = 5.0
#: How soon a task that runs elsewhere sees that it was cancelled.
_CANCEL_CHECK_S: Final = 0.2


def processes(setting: int | str, processors: int) -> int:
    """Return how many worker processes a node has. ``auto``: none where they would only take from each other."""
    if setting != "auto":
        return int(setting)
    return min(processors - 1, 4) if processors > 2 else 0


class Crew:
    """``count`` worker processes, started when they are needed.

    Args:
        config: the node's settings.
        count: how many, at least one.
        budget_bytes: what each may have in flight.
    """

    def __init__(self, config: NodeConfig, count: int, budget_bytes: int) -> None:
        self._hands = [_Hand(config, f"{number + 1}", budget_bytes) for number in range(count)]
        self._expecting = False
        self._lock = threading.Lock()
        self._rates: dict[str, float | None] = {}
        #: Cycles by the process that runs them and by limit.
        self._under: Counter[tuple[_Hand, str]] = Counter()
        self._set: dict[tuple[_Hand, str], tuple[float | None, int]] = {}

    def replicate(self, params: ReplicateParams, call: Call, key: Ed25519PublicKey | None) -> ReplicateResult:
        """Run a replication in the process that it belongs to.

        Raises:
            FarshoreError: what the replication raised.
            Retry: the process died, or did not start.
        """
        hand = self._hands[zlib.crc32(params.manifest.group_id.encode()) % len(self._hands)]
        hand.start()
        with self._counted(hand, params.limits):
            return ReplicateResult.model_validate(hand.run(call, _pem(key)))

    def limit(self, name: str, bytes_per_s: float | None) -> None:
        """Hold all processes together to a rate; None lifts it."""
        with self._lock:
            self._rates[name] = bytes_per_s
            self._divide(name)
            if bytes_per_s is None:
                del self._rates[name]

    def expect(self) -> int:
        """Return how many processes there are, for a source node that is there and will connect to each."""
        self._expecting = True
        return len(self._hands)

    def take(self, part: int, connection: socket.socket, host: str) -> bool:
        """Hand a connection to a process; False if there is no such one.

        Nobody has shown who it is yet: a process is started for it only once a source node was there.

        Raises:
            Retry, OSError: the process did not start, or does not take it.
        """
        if part > len(self._hands):
            return False
        if self._expecting:
            self._hands[part - 1].take(connection, host)
        return True

    def renew(self) -> None:
        """Have all show the node's newest certificate from now on."""
        for hand in self._hands:
            hand.tell("renew")

    def stop(self) -> None:
        """End all processes."""
        for hand in self._hands:
            hand.stop()

    @contextlib.contextmanager
    def _counted(self, hand: _Hand, names: Sequence[str]) -> Iterator[None]:
        """Count a cycle under its limits while it runs."""
        with self._lock:
            for name in names:
                self._under[hand, name] += 1
                self._divide(name)
        try:
            yield
        finally:
            with self._lock:
                for name in names:
                    self._under[hand, name] -= 1
                    self._divide(name)

    def _divide(self, name: str) -> None:
        """Give each process that has cycles under a limit its part. The lock is held."""
        rate = self._rates.get(name)
        users = [hand for (hand, other), count in self._under.items() if other == name and count]
        part = None if rate is None else rate / max(len(users), 1)
        for hand in users:
            now = part, hand.life
            if self._set.get((hand, name)) == now:
                continue
            self._set[hand, name] = now
            hand.tell("limit", name=name, bytes_per_s=part)


class _Pending:
    """A task that a worker process has."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.ended = threading.Event()
        self.outcome: dict[str, Any] = {}
        self.covers: dict[str, DraftCover] = {}

    def end(self, **outcome: Any) -> None:
        """Let the thread that waits for it go on."""
        self.outcome = outcome
        self.ended.set()


class _Hand:
    """One worker process, again and again.

    Attributes:
        life: grows with each start.
    """

    def __init__(self, config: NodeConfig, part: str, budget_bytes: int) -> None:
        self.life = 0
        self._config = config
        self._part = part
        self._budget_bytes = budget_bytes
        self._changed = threading.Condition()
        self._keeper: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._door: socket.socket | None = None
        self._ready = self._stopping = False
        self._pending: dict[str, _Pending] = {}

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            Retry: it did not start.
        """
        with self._changed:
            if self._keeper is None and not self._stopping:
                # Its thread lives as long as the process: the kernel ends the process with it.
                self._keeper = threading.Thread(target=self._keep, name=f"farshore-hand-{self._part}", daemon=True)
                self._keeper.start()
            keeper = self._keeper
            self._changed.wait_for(lambda: self._ready or keeper is None or self._keeper is not keeper, START_TIMEOUT_S)
            if not self._ready:
                raise Retry("a worker process of the node did not start", code="worker-process")

    def run(self, call: Call, grant_key_pem: str) -> dict[str, Any]:
        """Have a task done; see :meth:`Crew.replicate`."""
        pending = _Pending(call)
        task_id = call.task.task_id
        with self._changed:
            if not self._ready:
                raise Retry("a worker process of the node has just ended", code="worker-process")
            self._pending[task_id] = pending
        try:
            call.show_drafts(lambda _max_ranges: list(pending.covers.values()))
            self.tell("run", task=call.task.model_dump(mode="json"), grant_key_pem=grant_key_pem)
            while not pending.ended.wait(_CANCEL_CHECK_S):
                if call.cancel.is_set():
                    self.tell("cancel", task_id=task_id)
                    pending.ended.wait()
        finally:
            with self._changed:
                del self._pending[task_id]
        if "result" not in pending.outcome:
            raise from_dict(pending.outcome["error"])
        result: dict[str, Any] = pending.outcome["result"]
        return result

    def take(self, connection: socket.socket, host: str) -> None:
        """Hand a connection to the process; see :meth:`Crew.take`."""
        self.start()
        door = self._door
        if door is None:
            raise Retry("a worker process of the node has just ended", code="worker-process")
        hand_over(door, connection, host)

    def tell(self, do: str, **values: Any) -> None:
        """Send a message to the process if it runs. One that does not listen is ended, and its tasks fail."""
        channel, process = self._channel, self._process
        if channel is None or process is None:
            return
        try:
            channel.send(do, **values)
        except OSError as error:
            _log.error("a worker process does not listen", extra=fields(process=process.pid, reason=str(error)))
            process.kill()

    def stop(self) -> None:
        """End the process."""
        with self._changed:
            self._stopping = True
            keeper, process, channel = self._keeper, self._process, self._channel
        if keeper is None:
            return
        if channel is not None:
            channel.hang_up()  # it ends by itself
        keeper.join(END_TIMEOUT_S)
        if process is not None and process.poll() is None:
            process.kill()
            keeper.join(END_TIMEOUT_S)

    def _keep(self) -> None:
        status: int | None = None
        try:
            status = self._live()
        except OSError as error:
            _log.error("a worker process does not start", extra=fields(reason=str(error)))
        finally:
            with self._changed:
                self._process = self._channel = self._door = self._keeper = None
                self._ready = False
                lost = list(self._pending.values())
                self._changed.notify_all()
            if not self._stopping:
                _log.error("a worker process ended", extra=fields(status=status, tasks=len(lost)))
            failure = Retry(
                "the worker process that copied it ended",
                code="worker-process",
                hint="The next attempt goes on from what is durable.",
                status=status,
            )
            for pending in lost:
                pending.end(error=failure.to_dict())

    def _live(self) -> int:
        """Start the process and hear it to its end; return its status."""
        ours, theirs = socket.socketpair()
        door, inside = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with contextlib.closing(Channel(ours)) as channel, door:
            with theirs, inside:
                ends = theirs.fileno(), inside.fileno()
                argv = [sys.executable, "-m", "farshore.node.hand", *map(str, ends), str(os.getpid())]
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=ends)
            try:
                with self._changed:
                    self.life += 1
                    self._process, self._channel, self._door = process, channel, door
                config = self._config.model_dump(mode="json")
                self.tell("begin", config=config, part=self._part, budget_bytes=self._budget_bytes)
                for message in channel.messages():
                    self._hear(message)
            finally:
                process.kill()
                status = process.wait()
        return status

    def _hear(self, message: dict[str, Any]) -> None:
        if message["do"] == "ready":
            with self._changed:
                self._ready = True
                self._changed.notify_all()
            return
        if message["do"] == "draft":
            cover = DraftCover.model_validate(message["cover"])
            pending = self._pending.get(cover.task_id)
            if pending is not None:
                pending.covers = {**pending.covers, cover.disk_key: cover}
            return
        pending = self._pending.get(message["task_id"])
        if pending is None:
            return
        if message["do"] == "progress":
            pending.call.progress(Progress.model_validate(message["progress"]))
        elif "result" in message:
            pending.end(result=message["result"])
        else:
            pending.end(error=message["error"])


def _pem(key: Ed25519PublicKey | None) -> str:
    if key is None:
        return ""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()
