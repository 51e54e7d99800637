"""What runs beside the web servers: the scheduler's thread and the orchestrator."""

from __future__ import annotations

import threading

from farshore.control.context import Context
from farshore.control.orchestration import Orchestrator
from farshore.control.scheduling.loop import Scheduler


class Runtime:
    """Started once the process owns its home, stopped before it gives it back."""

    def __init__(self, ctx: Context) -> None:
        self._orchestrator = Orchestrator(ctx)
        self._scheduler = Scheduler(ctx, self._orchestrator)
        self._thread = threading.Thread(target=self._scheduler.run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._orchestrator.open()
        self._thread.start()

    def stop(self) -> None:
        """End after the round that runs now."""
        self._scheduler.stop()
        self._thread.join()
        self._orchestrator.close()
