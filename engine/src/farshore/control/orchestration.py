"""The one place that knows the orchestrator (DBOS Transact): it remembers how far each story is.

A workflow holds no state but the name of its phase. Each phase is a step: a transaction on our own records, keyed by
run and step, that may run again after a crash. Between steps the workflow waits durably for a message; no thread waits
with it. The orchestrator's own database is a file of its own.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
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
#: A story looks again after this long even if nobody has told it anything, and then after ever longer pauses.
LOOK_AGAIN_S: Final = 30.0
LONGEST_LOOK_S: Final = 3600.0
_TOPIC: Final = "poke"
#: Workflows from a queue run on the event loop; those that are started directly would each hold a thread.
_QUEUE: Final = "stories"
#: Workflows of one run, each begun when the one before died of an error that was not the run's.
_MOST_WORKFLOWS: Final = 20

_context: Context | None = None


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
    unchanged = 0
    while here is not None:
        after: str | None = await DBOS.run_step_async(
            {"name": here, "retries_allowed": True, "max_attempts": 5, "interval_seconds": 1.0},
            _advance,
            run_id,
            name,
            here,
        )
        if after == here:
            # A run that waits for people may wait for days, and each look stays in the orchestrator's database.
            pause_s = min(LOOK_AGAIN_S * 2**unchanged, LONGEST_LOOK_S)
            told = await DBOS.recv_async(_TOPIC, timeout_seconds=pause_s)
            unchanged = 0 if told is not None else min(unchanged + 1, 10)
        here = after


async def _advance(run_id: str, name: str, phase: str) -> str | None:
    if _context is None:
        raise RuntimeError("the orchestrator is not open")
    return await asyncio.to_thread(story.advance, _context, stories.STORIES[name], run_id, phase)


class Orchestrator:
    """Begins the stories of runs and wakes them. One per process, since DBOS is."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._workflows: dict[str, str] = {}

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
            "notification_listener_polling_interval_sec": 0.2,
        }
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(_QUEUE, polling_interval_sec=0.2)

    def close(self) -> None:
        """Give the database back; workflows go on with the next process."""
        global _context  # noqa: PLW0603
        logging.getLogger("dbos").setLevel(logging.ERROR)  # it warns of each workflow that is left for later
        DBOS.destroy(workflow_completion_timeout_sec=0)
        _context = None

    def tend(self) -> None:
        """Begin the stories of new runs, wake those to whose run something has happened."""
        with self.ctx.store.read() as session:
            # Without what is large: this is looked at each second.
            runs = session.execute(
                select(Run.run_id, Run.pokes, Run.told, Run.wake_at).where(Run.workflow, Run.state.in_(ledger.OPEN))
            ).all()
        now = time.time()
        for run_id, pokes, told, wake_at in runs:
            if run_id not in self._workflows:
                self._begin(run_id)
            if wake_at is not None and wake_at <= now:
                self._wake(run_id)
            elif pokes != told:
                self._tell(run_id, pokes)
        for run_id in set(self._workflows) - {run.run_id for run in runs}:
            del self._workflows[run_id]

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
        with self.ctx.store.read() as session:
            run = session.get_one(Run, run_id)
            name, phase = stories.begin(run)
        for number in range(_MOST_WORKFLOWS):
            workflow_id = f"{run_id}/{number}"
            status = DBOS.get_workflow_status(workflow_id)
            if status is None:
                with SetWorkflowID(workflow_id):
                    DBOS.enqueue_workflow(_QUEUE, failover if run.kind == "failover" else drill, run_id, name, phase)
            elif status.status not in {"PENDING", "ENQUEUED", "DELAYED"}:
                continue
            self._workflows[run_id] = workflow_id
            return
        log.error("run %s: its workflow died %d times", run_id, _MOST_WORKFLOWS)

    def _wake(self, run_id: str) -> None:
        """Let a run look again whose delay is over."""
        with self.ctx.store.write() as tx:
            run = tx.get_one(Run, run_id)
            run.wake_at = None
            run.pokes += 1

    def _tell(self, run_id: str, pokes: int) -> None:
        workflow_id = self._workflows.get(run_id)
        if workflow_id is None:
            return
        DBOS.send(workflow_id, pokes, _TOPIC, idempotency_key=f"{workflow_id}/{pokes}")
        with self.ctx.store.write() as tx:
            tx.execute(update(Run).where(Run.run_id == run_id).values(told=pokes))
