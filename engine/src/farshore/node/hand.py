"""A worker process of a node: runs replications that it is given, with connections and windows of its own.

Started by :mod:`farshore.node.crew` as ``python -m farshore.node.hand CHANNEL DOOR PARENT``. It holds no state but
journals and drafts, which are those that the node itself would keep, so it may be killed at any instant. It ends with
its parent: the kernel sees to that, and the end of the channel.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from farshore.errors import FarshoreError
from farshore.model.task import Task
from farshore.node import log
from farshore.node.channel import Channel
from farshore.node.config import NodeConfig
from farshore.node.drafts import Drafts
from farshore.node.identity import load_grant_key, of
from farshore.node.marks import Marks
from farshore.node.tasks import Site, execute
from farshore.node.worker import Call, KeyedLocks
from farshore.platforms import registry
from farshore.replication.flow import NodeWindow
from farshore.replication.usage import settle
from farshore.transport import tls
from farshore.transport.links import Links
from farshore.transport.listener import DataListener
from farshore.transport.parts import Door

_log = logging.getLogger(__name__)

TELL_EVERY_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1


class Hand:
    """What a worker process is."""

    def __init__(self, channel: Channel, door: Door, config: NodeConfig, part: str, budget_bytes: int) -> None:
        self._channel = channel
        self._identity = of(config)
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}
        self._grant_key_pem = ""
        self._site = Site(
            platform=registry.open_platform(config.platform, part),
            links=Links(self._load()),
            window=NodeWindow(budget_bytes),
            journal_dir=config.state_dir / "journal",
            marks=Marks(config.state_dir / "marks.json"),
            locks=KeyedLocks(),
            grant_key=lambda: load_grant_key(self._grant_key_pem) if self._grant_key_pem else None,
        )
        links = self._site.links
        DataListener(lambda: links.identity, adopt=links.adopt).start_at(door)

    def _load(self) -> tls.NodeTls:
        return tls.load(self._identity.certificate_path, self._identity.key_path, self._identity.ca_path)

    def run(self, messages: Iterator[dict[str, Any]]) -> None:
        """Do what comes until the channel ends."""
        threading.Thread(target=self._tell, name="hand-tell", daemon=True).start()
        for message in messages:
            do = message["do"]
            if do == "run":
                self._begin(message)
            elif do == "cancel":
                with self._lock:
                    call = self._calls.get(message["task_id"])
                if call is not None:
                    call.cancel.set()
            elif do == "limit":
                self._site.limit(message["name"], message["bytes_per_s"])
            elif do == "renew":
                self._site.links.renew(self._load())

    def _begin(self, message: dict[str, Any]) -> None:
        self._grant_key_pem = message["grant_key_pem"]
        call = Call(Task.model_validate(message["task"]))
        with self._lock:
            self._calls[call.task.task_id] = call
        threading.Thread(target=self._work, args=(call,), name=f"hand-{call.task.task_id}", daemon=True).start()

    def _work(self, call: Call) -> None:
        task_id = call.task.task_id
        outcome: dict[str, Any]
        try:
            outcome = {"result": execute(self._site, call)}
        except FarshoreError as error:
            outcome = {"error": error.to_dict()}
        except Exception as error:  # noqa: BLE001 - the boundary of a task: a bug in one must not end the others
            _log.exception("a task failed in a way that was not foreseen", extra=log.fields(task=task_id))
            failure = FarshoreError(
                f"task {call.task.kind} failed on the node with {type(error).__name__}",
                code="internal",
                hint="The node's log has the details.",
            )
            outcome = {"error": failure.to_dict()}
        with self._lock:
            del self._calls[task_id]
            self._send("end", task_id=task_id, **outcome)

    def _send(self, do: str, **values: Any) -> None:
        try:
            self._channel.send(do, **values)
        except OSError:
            os._exit(1)  # nobody would hear what becomes of our tasks

    def _tell(self) -> None:
        drafts = Drafts()
        while True:
            time.sleep(TELL_EVERY_S)
            with self._lock:
                calls = list(self._calls.values())
            covers = drafts.grown(calls)
            drafts.told(covers)
            # Under the lock: nothing is told of a task after its end.
            with self._lock:
                for cover in covers:
                    if cover.task_id in self._calls:
                        self._send("draft", cover=cover.model_dump(mode="json"))
                for call in self._calls.values():
                    progress = call.unsent_progress()
                    if progress is not None:
                        told = progress.model_dump(mode="json")
                        self._send("progress", task_id=call.task.task_id, progress=told)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)  # it went before we had asked


def main(argv: list[str]) -> int:
    """Run a worker process; return the exit status."""
    descriptor, door, parent = map(int, argv)
    end_with(parent)
    faulthandler.register(signal.SIGUSR1)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when we end
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    messages = channel.messages()
    begin = next(messages)
    config = NodeConfig.model_validate(begin["config"])
    log.configure(config.log_level)
    hand = Hand(channel, Door(fileno=door), config, begin["part"], begin["budget_bytes"])
    settle()
    channel.send("ready")
    hand.run(messages)
    # The threads of tasks may be anywhere; what is durable is, and the rest is done again.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
