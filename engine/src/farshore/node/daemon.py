"""The node's process: polls for work, runs it, reports it, serves its disks to other nodes.

Threads: one polls, one delivers reports, one tells progress, the worker's lanes run tasks, the source service serves.
Each goes on without the others: with the control plane away, tasks run and publish, reports wait on disk.

The node obeys the highest catalog generation that it has seen and keeps it; what comes with a lower one is not done.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from farshore import __version__, durable
from farshore.errors import FarshoreError, Fenced, Forbidden, Invalid, Permanent, Unauthenticated
from farshore.model.task import EndedTask, PollReply, PollRequest, Room, Task
from farshore.node import enrol, mounts, process, tidy
from farshore.node.client import Backoff, ControlClient
from farshore.node.config import NodeConfig
from farshore.node.crew import Crew, processes
from farshore.node.drafts import Drafts
from farshore.node.identity import Catalog, load_grant_key, of
from farshore.node.kit import Kits
from farshore.node.log import fields
from farshore.node.marks import Marks
from farshore.node.spool import Owed, Spool
from farshore.node.standing import Standing
from farshore.node.tasks import Site, execute, lane_of
from farshore.node.worker import KeyedLocks, Lane, Worker
from farshore.platforms import registry
from farshore.platforms.paced import Pace, paced
from farshore.recovery.hooks.player import Player
from farshore.recovery.hooks.run import HOOK_USER, WORK_DIR, Settings
from farshore.recovery.secrets import Secrets
from farshore.replication.flow import NodeWindow
from farshore.replication.serve import SourceService
from farshore.replication.usage import memory_bytes, settle
from farshore.transport import tls
from farshore.transport.dialing import Dialer
from farshore.transport.links import Links
from farshore.transport.listener import DataListener
from farshore.units import CHUNK_SIZE
from farshore.window.budget import node_budget

_log = logging.getLogger(__name__)

#: A control plane that comes back is found within this; one that stays away costs one connection attempt per pause.
POLL_PAUSE_CAP_S: Final = 5.0
#: One that refuses our certificate will not change its mind soon.
REFUSED_PAUSE_CAP_S: Final = 60.0
REPEATED_PAUSE_S: Final = 0.5
RENEW_AGAIN_S: Final = 300.0
PROGRESS_EVERY_S: Final = 1.0
#: Reports in one call, and about how much of them: the control plane takes 64 MiB.
BATCH_REPORTS: Final = 64
BATCH_BYTES: Final = 8 * 1024 * 1024
#: How long tasks get to end when the node is asked to: a replication marks what it has within seconds.
STOP_TIMEOUT_S: Final = 20.0
LAST_WORDS_S: Final = 5.0
#: A node that was asked to stop and has not by then says where each thread hangs, and is ended.
GIVE_UP_S: Final = 50.0


class Node:
    """One running node."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.incarnation = secrets.token_hex(8)
        #: Whether it ended by a bug.
        self.failed = False
        self._end = process.Ending()
        self._ending = threading.Event()
        self._identity = of(config)
        self._catalog_lock = threading.Lock()
        self._catalog = self._identity.catalog()
        certificate = tls.load(self._identity.certificate_path, self._identity.key_path, self._identity.ca_path)
        self._renew_not_before = 0.0
        self._platform = registry.open_platform(config.platform)
        self._pace = Pace()
        if self._platform.compute is not None:
            compute = paced(self._platform.compute, self._pace)
            self._platform = replace(self._platform, compute=compute, inventory=compute.inventory)
        self._service = SourceService(
            self._platform.source, certificate, load_grant_key(self._catalog.grant_key_pem), self._catalog.generation
        )
        self._service.on_generation = self._raise_generation
        self._journal_dir = config.state_dir / "journal"
        durable.make_dir(self._journal_dir)
        workers = processes(config.workers, len(os.sched_getaffinity(0)))
        budget_bytes = node_budget(memory_bytes(), config.node_window)
        budget_bytes = max(CHUNK_SIZE, budget_bytes // max(workers, 1))
        site = self._site = Site(
            platform=self._platform,
            links=Links(certificate),
            window=NodeWindow(budget_bytes),
            journal_dir=self._journal_dir,
            marks=Marks(config.state_dir / "marks.json"),
            locks=KeyedLocks(),
            grant_key=lambda: self._service.grant_key,
        )
        site.player = self._player()
        recovers = "recovery" in config.roles
        guests = self._platform.compute is not None
        self._kits = Kits(site.player if recovers else None, guests=guests, clock=time.monotonic)
        site.secrets = Secrets(config.secrets_path)
        self._crew = Crew(config, workers, budget_bytes) if workers else None
        site.elsewhere = self._crew.replicate if self._crew else None
        limits = config.limits
        lanes = {name: Lane(name, limit) for name, limit in limits.model_dump().items()}
        self._worker = Worker(lambda call: execute(site, call), lanes, lane_of, Spool(config.state_dir / "tasks"))
        self._data_port = 0
        service = self._service
        # Connections come in and go out for both sides: who listens and who asks are two questions.
        self._listener = DataListener(
            lambda: service.identity,
            serve=service.serve_connection,
            adopt=site.links.adopt,
            parts=self._crew,
        )
        self._dialer = Dialer(lambda: service.identity, service.serve_connection)
        self._drafts = Drafts()
        self._limit_bytes = self._crew.limit if self._crew else site.limit
        self._standing = Standing(self._limit, self._dialer)

    def _player(self) -> Player:
        config = self.config
        user = config.hooks.user or (HOOK_USER if os.geteuid() == 0 else None)
        work_dir = config.hooks.work_dir or (WORK_DIR if user and os.geteuid() == 0 else config.state_dir / "hooks")
        owner = hashlib.sha256(str(config.state_dir).encode()).hexdigest()[:8]

        def fetch(digest: str) -> bytes:
            client = ControlClient(config.control_url, self._identity)
            with contextlib.closing(client):
                return client.bundle(digest)

        return Player(
            Settings(work_dir, user, str(config.hooks.python or sys.executable), f"run-{owner}"),
            Secrets(config.secrets_path),
            fetch,
            config.state_dir / "bundles",
            config.limits.hook,
        )

    def _limit(self, resource: str, per_s: float | None) -> None:
        """Let a share hold: of calls of the provider, or of bytes."""
        if resource.startswith("calls:"):
            self._pace.set(per_s)
        elif resource.startswith("reads:"):
            self._site.limit(resource, per_s)  # points are read in this process only
        else:
            self._limit_bytes(resource, per_s)

    def run(self) -> None:
        """Work until :meth:`end`."""
        interrupted = self._worker.recover()
        data = self.config.data_listen
        if data != "none":
            host, self._data_port = self._listener.start(data)
            data = f"{host}:{self._data_port}"
        _log.info(
            "node runs",
            extra=fields(
                node=self.config.name,
                site=self.config.site,
                incarnation=self.incarnation,
                version=__version__,
                data=data,
                control=self.config.control_url,
                owed=len(self._worker.held()),
                interrupted=interrupted,
            ),
        )
        certificate = self._identity.certificate()
        problem = self._identity.why_not(certificate, datetime.now(UTC)) if certificate else ""
        if problem:
            _log.error("this node's certificate is of no use; enrol it again", extra=fields(reason=problem))
        threads = [
            threading.Thread(target=self._guard, args=(loop,), name=f"farshore-{name}", daemon=True)
            for name, loop in (
                ("poll", self._poll_loop),
                ("report", self._report_loop),
                ("progress", self._tell_loop),
                ("tidy", self._tidy_loop),
            )
        ]
        for thread in threads:
            thread.start()
        self._end.wait()
        self._ending.set()
        self._stop()

    def end(self) -> None:
        """Ask the node to end; returns at once, and may be called by a signal's handler."""
        self._end.ask()

    def _guard(self, loop: Callable[[], None]) -> None:
        # A loop that dies of a bug must take the process with it: half a node looks alive and does nothing.
        try:
            loop()
        except Exception:  # noqa: BLE001 - said in the log, and the process ends
            _log.exception("a part of the node failed; the node ends")
            self.failed = True
            self.end()

    def _stop(self) -> None:
        _log.info("node stops")
        left = self._worker.stop(STOP_TIMEOUT_S)
        if left:
            _log.warning("tasks did not end in time and are left", extra=fields(tasks=left))
        # A last chance for reports; what is not taken now is on disk for the next start.
        _within(LAST_WORDS_S, self._deliver_owed)
        if self._crew is not None:
            self._crew.stop()
        # Peers that are mute in the middle of a frame must not hold us: the kernel closes what is left.
        _within(LAST_WORDS_S, self._listener.stop)
        _within(LAST_WORDS_S, self._dialer.close)
        _within(LAST_WORDS_S, self._service.stop)
        _within(LAST_WORDS_S, self._site.links.close)
        _log.info("node stopped")

    # Polling

    def _poll_loop(self) -> None:
        control = ControlClient(self.config.control_url, self._identity)
        pause = Backoff(cap_s=POLL_PAUSE_CAP_S)
        trouble = ""
        while not self._ending.is_set():
            try:
                self._renew(control)
                asked_at = time.monotonic()
                request = self._request()
                reply = control.poll(request)
                self._drafts.told(request.drafts)
            except FarshoreError as error:
                # Said once per kind of trouble, not once per try.
                if error.code != trouble:
                    _log.warning("no work from the control plane", extra=fields(code=error.code, reason=error.message))
                trouble = error.code
                refused = isinstance(error, (Unauthenticated, Forbidden))
                pause.cap_s = REFUSED_PAUSE_CAP_S if refused else POLL_PAUSE_CAP_S
                self._ending.wait(pause.next_s())
                continue
            if trouble:
                _log.info("the control plane answers again")
            trouble = ""
            pause.reset()
            if not self._obey(reply, asked_at):
                self._ending.wait(POLL_PAUSE_CAP_S)
            elif not self._take(reply) and (reply.tasks or reply.cancel):
                # Nothing new: a task that still has to stop, or one that we refuse. The next poll would not wait.
                self._ending.wait(REPEATED_PAUSE_S)
        control.close()

    def _request(self) -> PollRequest:
        return PollRequest(
            node=self.config.name,
            incarnation=self.incarnation,
            version=__version__,
            platform=self._platform.type,
            data_port=self._data_port,
            running=self._worker.held(),
            recoveries=self.config.limits.machine if "recovery" in self.config.roles else 0,
            generation=self._catalog.generation,
            standing=self._standing.name,
            drafts=self._drafts.grown(self._worker.calls()),
            kit=self._kits.now(),
            wait_s=self.config.poll_wait,
        )

    def _renew(self, control: ControlClient) -> None:
        """Renew the certificate when it is time; a failure costs a log line and another try later."""
        if time.monotonic() < self._renew_not_before:
            return
        try:
            if not enrol.renew(self._identity, control, datetime.now(UTC)):
                return
            identity = tls.load(self._identity.certificate_path, self._identity.key_path, self._identity.ca_path)
        except FarshoreError as error:
            self._renew_not_before = time.monotonic() + RENEW_AGAIN_S
            _log.warning("certificate not renewed", extra=fields(code=error.code, reason=error.message))
            return
        self._service.identity = identity
        self._dialer.refresh()
        if self._crew is not None:
            self._crew.renew()
        # A grant names our certificate's thumbprint, and connections that are open show the old one.
        self._site.links.renew(identity)
        _log.info("certificate renewed")

    def _obey(self, reply: PollReply, asked_at: float) -> bool:
        """Say whether the reply comes from the control plane that the node obeys; keep what is new in it."""
        known = self._catalog
        if reply == PollReply():
            return True
        if reply.generation < known.generation:
            _log.error(
                "the control plane is not the one that this node obeys; nothing of what it asks is done",
                extra=fields(obeyed=known.generation, offered=reply.generation),
            )
            return False
        if reply.generation > known.generation or (reply.grant_key and reply.grant_key != known.grant_key_pem):
            key_pem = reply.grant_key or known.grant_key_pem
            try:
                self._keep(Catalog(known.catalog_id, reply.generation, key_pem))
            except Permanent as error:
                _log.error("the control plane's grant key is refused", extra=fields(reason=error.message))
        # Before its tasks begin: they find their limits set.
        self._standing.obey(reply, asked_at)
        return True

    def _raise_generation(self, generation: int) -> None:
        """Keep a generation that another node's grant has proven."""
        known = self._catalog
        if generation > known.generation:
            self._keep(Catalog(known.catalog_id, generation, known.grant_key_pem))

    def _keep(self, catalog: Catalog) -> None:
        key = load_grant_key(catalog.grant_key_pem)
        with self._catalog_lock:
            self._identity.keep_catalog(catalog)
            self._catalog = catalog
            self._service.grant_key = key
            self._service.generation = catalog.generation

    def _take(self, reply: PollReply) -> bool:
        """Do what the reply asks; say whether a task began."""
        begun = self._begin(reply.tasks)
        for task_id in reply.cancel:
            self._worker.cancel(task_id)
        return begun

    def _begin(self, tasks: Iterable[Task]) -> bool:
        """Take tasks over; say whether one of them began."""
        begun = False
        for task in tasks:
            if task.site != self.config.site:
                _log.error("a task of another site is refused", extra=fields(task=task.task_id, site=task.site))
                continue
            try:
                begun |= self._worker.accept(task)
            except (Invalid, OSError) as error:
                _log.error("a task cannot be taken", extra=fields(kind=task.kind, reason=str(error)))
        return begun

    # Reports

    def _report_loop(self) -> None:
        control = ControlClient(self.config.control_url, self._identity)
        pause = Backoff(cap_s=POLL_PAUSE_CAP_S)
        while not self._ending.is_set():
            owed = self._worker.await_owed(1.0)
            if owed and not self._deliver(control, owed, more=True):
                self._ending.wait(pause.next_s())
            else:
                pause.reset()
        control.close()

    def _deliver_owed(self) -> None:
        with contextlib.closing(ControlClient(self.config.control_url, self._identity)) as control:
            self._deliver(control, self._worker.await_owed(0), more=False)

    def _deliver(self, control: ControlClient, owed: list[Owed], *, more: bool) -> bool:
        """Send reports, and begin what comes back for them; False when the control plane cannot take them now."""
        return all(self._send(control, batch, more=more) for batch in _batches(owed))

    def _send(self, control: ControlClient, batch: list[Owed], *, more: bool) -> bool:
        ended = [EndedTask(task_id=item.task_id, **item.report) for item in batch]
        try:
            reply = control.report(ended, self._room() if more else None)
        except (Unauthenticated, Forbidden):
            return False
        except Permanent as error:
            if len(batch) > 1:  # one of them: the others are taken
                return all(self._send(control, [item], more=more) for item in batch)
            self._refused(batch[0], error)
            return True
        except FarshoreError:
            return False
        refused = {refusal.task_id: refusal for refusal in reply.refused}
        for item in batch:
            if refusal := refused.get(item.task_id):
                tags = {"task": item.task_id, "kind": item.kind, "term": item.term}
                _log.warning("a report is not wanted", extra=fields(**tags, code=refusal.code, reason=refusal.message))
            self._worker.delivered(item)
        # Where the generation differs the next poll says whom to obey, and brings them again.
        if reply.generation == self._catalog.generation:
            self._begin(reply.tasks)
        return True

    def _room(self) -> Room | None:
        if "recovery" not in self.config.roles or self._ending.is_set():
            return None
        return Room(
            incarnation=self.incarnation,
            generation=self._catalog.generation,
            recoveries=self.config.limits.machine,
        )

    def _refused(self, item: Owed, error: Permanent) -> None:
        """Send a failure in place of a report that the control plane cannot take, and nothing in place of that."""
        _log.error("a report is refused", extra=fields(task=item.task_id, code=error.code, reason=error.message))
        if (item.report.get("error") or {}).get("code") == "report-refused":
            self._worker.delivered(item)
            return
        failure = Permanent(
            f"the control plane refused the report of task {item.kind}: {error.message}", code="report-refused"
        )
        self._worker.replace(item, failure)

    def _tell_loop(self) -> None:
        control = ControlClient(self.config.control_url, self._identity)
        while not self._ending.wait(PROGRESS_EVERY_S):
            self._standing.tick(time.monotonic())
            for call in self._worker.calls():
                progress = call.unsent_progress()
                if progress is None:
                    continue
                try:
                    control.progress(call.task.task_id, call.task.term, progress)
                except Fenced:
                    _log.warning("a task belongs to somebody else now", extra=fields(task=call.task.task_id))
                    call.cancel.set()
                except FarshoreError:
                    break
        control.close()

    def _tidy_loop(self) -> None:
        while True:
            tidy.tidy(self._platform, self._journal_dir, time.time())
            if self._ending.wait(tidy.EVERY_S):
                return


def _batches(owed: Iterable[Owed]) -> Iterator[list[Owed]]:
    """Yield reports in batches that the control plane takes in one call: so many, and so large together."""
    batch: list[Owed] = []
    size = 0
    for item in owed:
        length = len(json.dumps(item.report))
        if batch and (len(batch) == BATCH_REPORTS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _within(timeout_s: float, work: Callable[[], None]) -> None:
    """Run ``work``, but wait no longer than ``timeout_s`` for it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_s)


def run(config: NodeConfig) -> int:
    """Run the node as this process until SIGTERM or SIGINT; return the exit status, which the process then ends with.

    Raises:
        Conflict: a node runs with this state_dir already.
        Permanent: the node is not enrolled, its platform or its listener cannot be opened, or what has to be locked
            lies where other hosts do not see its locks.
    """
    mounts.check_locks(config.state_dir, "state_dir")
    for key in ("root", "pool", "scratch"):
        if isinstance(folder := config.platform.get(key), str):
            mounts.check_locks(Path(folder), f"platform.{key}")
    with process.only_one(config.lock_path, config.pid_path):
        node = Node(config)
        settle()
        with _ending_by_signal(node):
            node.run()
        return 70 if node.failed else 0


@contextlib.contextmanager
def _ending_by_signal(node: Node) -> Iterator[None]:
    def end(_number: int, _frame: object) -> None:
        faulthandler.dump_traceback_later(GIVE_UP_S, exit=True)
        node.end()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
