"""The one place that knows the orchestrator (DBOS Transact): it remembers how far each story is.

A workflow holds no state but the name of its phase. Each phase is a step of transactions on our own records, keyed by
run and step, that may run again after a crash. A phase that waits looks again when something has happened; no thread
waits with it. The orchestrator's own database is a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from datetime import UTC, datetime
from typing import Final

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID
from sqlalchemy import select, update

from farshore.control.context import Context
from farshore.control.runs import ledger, stories, story
from farshore.control.store.records import Run

log = logging.getLogger(__name__)

#: Pinned: with another version, DBOS would leave the workflows of the old one alone. Raised when steps change their
#: meaning, together with code that ends the old ones.
APPLICATION_VERSION: Final = "1"
#: Stable over restarts, so that a restarted process goes on at once. The home's lock keeps it from being used twice.
EXECUTOR_ID: Final = "control-1"
#: A story looks again after this long even if nothing is known to have happened.
LOOK_AGAIN_S: Final = 30.0
#: What happens within this time is looked at together.
GATHER_S: Final = 0.1
#: Looks until the orchestrator notes that a phase goes on, and counts its failures anew.
_LOOKS_A_STEP: Final = 1000
#: Workflows of one run, each begun when the one before died of an error that was not the run's.
_MOST_WORKFLOWS: Final = 20

_context: Context | None = None
#: What rings for each run that is at work, and the loop that waits for it.
_bells: Final[dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}


@DBOS.workflow(name="drill")
async def drill(run_id: str, name: str, phase: str) -> None:
    """Take a drill or a clean-up from its first phase to its end."""
    await _go(run_id, name, phase)


@DBOS.workflow(name="failover")
async def failover(run_id: str, name: str, phase: str) -> None:
    """Take a failover from its first phase to its end."""
    await _go(run_id, name, phase)


async def _go(run_id: str, name: str, phase: str) -> None:
    here: str | None = phase
    while here is not None:
        here = await DBOS.run_step_async(
            {"name": here, "retries_allowed": True, "max_attempts": 5, "interval_seconds": 1.0},
            _advance,
            run_id,
            name,
            here,
        )
    _bells.pop(run_id, None)


async def _advance(run_id: str, name: str, phase: str) -> str | None:
    """Take a run through a phase; return the phase to go on with, None at the end.

    Each look at the run is a transaction of its own on our records and can be repeated at any time, so the orchestrator
    remembers none of them. What happens meanwhile rings; what happens within a moment is looked at together, and no
    more than half of a processor is spent on looks.
    """
    if _context is None:
        raise RuntimeError("the orchestrator is not open")
    bell = _bell(run_id)
    for _ in range(_LOOKS_A_STEP):
        bell.clear()
        after, spent_s = await asyncio.to_thread(_look, _context, run_id, name, phase)
        if after != phase:
            return after
        await asyncio.sleep(max(GATHER_S, spent_s))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(bell.wait(), LOOK_AGAIN_S)
    return phase


def _look(ctx: Context, run_id: str, name: str, phase: str) -> tuple[str | None, float]:
    """Take a run as far as its phase goes now; return where it goes on, and the processor time that it took."""
    began = time.thread_time()
    return story.advance(ctx, stories.STORIES[name], run_id, phase), time.thread_time() - began


def _bell(run_id: str) -> asyncio.Event:
    """Return what rings when something has happened to a run, for the loop that runs now."""
    bell = asyncio.Event()
    _bells[run_id] = (asyncio.get_running_loop(), bell)
    return bell


def _ring(run_id: str) -> None:
    """Let a run be looked at again. One that is between two phases is looked at anyway."""
    loop, bell = _bells.get(run_id, (None, None))
    if loop is not None and bell is not None and not loop.is_closed():
        loop.call_soon_threadsafe(bell.set)


class _Teller:
    """The thread on whose event loop stories are begun: each waits there without a thread of its own.

    A queue of the orchestrator's would do that too, but it is looked into all the time, also where nobody asks for
    anything in weeks. What a former process left goes on from the orchestrator's own queue.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stories", daemon=True)
        self._thread.start()

    def begin(self, workflow_id: str, kind: str, arguments: tuple[str, str, str]) -> None:
        """Begin a workflow; it is recorded when this returns."""
        asyncio.run_coroutine_threadsafe(self._begin(workflow_id, kind, arguments), self._loop).result()

    @staticmethod
    async def _begin(workflow_id: str, kind: str, arguments: tuple[str, str, str]) -> None:
        with SetWorkflowID(workflow_id):
            await DBOS.start_workflow_async(failover if kind == "failover" else drill, *arguments)

    def close(self) -> None:
        """Let go of all stories where they are."""
        asyncio.run_coroutine_threadsafe(self._let_go(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _let_go() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Orchestrator:
    """Begins the stories of runs and wakes them. One per process, since DBOS is."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._workflows: dict[str, str] = {}
        self._teller: _Teller | None = None
        #: How much of what happened to each run its story was told by this process.
        self._told: dict[str, int] = {}

    def open(self) -> None:
        """Open the orchestrator's database and go on with what a former process left."""
        global _context  # noqa: PLW0603 - workflows are found by name in their module
        _context = self.ctx
        path = self.ctx.home.dbos_database
        path.touch(0o600)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        for name in ("dbos", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        config: DBOSConfig = {
            "name": "farshore",
            "system_database_url": f"sqlite:///{path}",
            "executor_id": EXECUTOR_ID,
            "application_version": APPLICATION_VERSION,
            # The default would unpickle whatever stands in the database.
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            "enable_otlp": False,
            "notification_listener_polling_interval_sec": 0.5,  # nothing is sent by it, but its stop waits for so long
        }
        DBOS(config=config)
        DBOS.launch()
        self._teller = _Teller()

    def close(self) -> None:
        """Give the database back; workflows go on with the next process."""
        global _context  # noqa: PLW0603
        logging.getLogger("dbos").setLevel(logging.ERROR)  # it warns of each workflow that is left for later
        if self._teller is not None:
            self._teller.close()
            self._teller = None
        DBOS.destroy(workflow_completion_timeout_sec=0)
        _context = None

    def tend(self) -> bool:
        """Begin the stories of new runs, wake those to whose run something has happened; say whether there are any."""
        with self.ctx.store.read() as session:
            # Without what is large: this is looked at each second.
            runs = session.execute(
                select(Run.run_id, Run.pokes, Run.wake_at).where(Run.workflow, Run.state.in_(ledger.OPEN))
            ).all()
        now = time.time()
        for run_id, pokes, wake_at in runs:
            if run_id not in self._workflows:
                self._begin(run_id)
            late = wake_at is not None and wake_at <= now
            if late:
                with self.ctx.store.write() as tx:
                    tx.execute(update(Run).where(Run.run_id == run_id).values(wake_at=None))
            if late or pokes != self._told.get(run_id):
                self._told[run_id] = pokes
                _ring(run_id)
        for run_id in set(self._workflows) - {run.run_id for run in runs}:
            del self._workflows[run_id]
            self._told.pop(run_id, None)
            _ring(run_id)  # it may have been ended from outside
        return bool(runs)

    def check(self) -> None:
        """Begin anew the stories whose workflow has died although the run has not ended."""
        for run_id, workflow_id in list(self._workflows.items()):
            status = DBOS.get_workflow_status(workflow_id)
            if status is None or status.status in {"PENDING", "ENQUEUED", "DELAYED"}:
                continue
            log.error("workflow %s ended as %s: %s", workflow_id, status.status, status.error)
            del self._workflows[run_id]

    def forget(self, older_than_s: float) -> None:
        """Remove the workflows of runs that ended long ago; their evidence is in our own records."""
        before = datetime.fromtimestamp(time.time() - older_than_s, UTC).isoformat()
        while ended := DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=before,
            limit=100,
            load_input=False,
            load_output=False,
        ):
            DBOS.delete_workflows([workflow.workflow_id for workflow in ended])

    def _begin(self, run_id: str) -> None:
        """Start a run's workflow, or find the one that is at work."""
        if self._teller is None:
            raise RuntimeError("the orchestrator is not open")
        with self.ctx.store.read() as session:
            run = session.get_one(Run, run_id)
            name, phase = stories.begin(run)
        for number in range(_MOST_WORKFLOWS):
            workflow_id = f"{run_id}/{number}"
            status = DBOS.get_workflow_status(workflow_id)
            if status is None:
                self._teller.begin(workflow_id, run.kind, (run_id, name, phase))
            elif status.status not in {"PENDING", "ENQUEUED", "DELAYED"}:
                continue
            self._workflows[run_id] = workflow_id
            return
        log.error("run %s: its workflow died %d times", run_id, _MOST_WORKFLOWS)
