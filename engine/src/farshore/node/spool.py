"""What the node owes the control plane, on disk: accepted tasks and reports that were not taken yet.

Two files per task, each written whole or not at all (:mod:`farshore.durable`):

``<task id>.task.json``
    written before the task begins: the node holds it.
``<task id>.report.json``
    written when it has ended; *this write is the commit point of the task's end*. The task file is removed after it,
    the report file when the control plane has taken it.

What a restart finds, and does:

=============  ===============  =====================================================================
task file      report file      meaning
=============  ===============  =====================================================================
yes            no               interrupted: dropped; the control plane gives it again with term + 1
yes            same term        ended, crash before the task file went: the report is delivered
yes            lower term       begun again, crash before the old report went: both dropped
no             yes              ended: the report is delivered
=============  ===============  =====================================================================
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from farshore import durable
from farshore.errors import Invalid
from farshore.model.task import Task, TaskReport
from farshore.node.log import fields

#: Task ids become file names, so their form is checked here and not only by the sender.
_TASK_ID: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_:-]{0,127}$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owed:
    """A report that the control plane has not taken yet."""

    task_id: str
    kind: str
    term: int
    report: dict[str, Any]


class Spool:
    """The directory ``directory`` of task and report files. One process at a time; not safe for several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        durable.make_dir(directory)

    def _task_path(self, task_id: str) -> Path:
        if not _TASK_ID.fullmatch(task_id):
            raise Invalid(f"{task_id!r} is no task id", code="task-id-invalid", field="task_id")
        return self.directory / f"{task_id}.task.json"

    def _report_path(self, task_id: str) -> Path:
        return self._task_path(task_id).with_name(f"{task_id}.report.json")

    def accept(self, task: Task) -> None:
        """Keep the fact that the node holds ``task``; an older report of the same task goes.

        Raises:
            Invalid: the task's id cannot be kept.
        """
        durable.write_json(
            self._task_path(task.task_id), {"task_id": task.task_id, "kind": task.kind, "term": task.term}
        )
        durable.remove(self._report_path(task.task_id))

    def finish(self, owed: Owed) -> None:
        """Keep a report until :meth:`delivered`."""
        durable.write_json(
            self._report_path(owed.task_id),
            {"task_id": owed.task_id, "kind": owed.kind, "term": owed.term, "report": owed.report},
        )
        durable.remove(self._task_path(owed.task_id))

    def drop(self, task_id: str) -> None:
        """Forget a task that will not be reported."""
        durable.remove(self._task_path(task_id))

    def delivered(self, task_id: str) -> None:
        """Forget a report."""
        durable.remove(self._report_path(task_id))

    def recover(self) -> tuple[list[Owed], list[str]]:
        """Return the reports that are owed and the ids of the tasks that were interrupted, which are dropped."""
        tasks = {str(data["task_id"]): int(data["term"]) for _, data in self._read("task")}
        owed: list[Owed] = []
        for path, data in self._read("report"):
            try:
                item = Owed(
                    str(data["task_id"]),
                    str(data["kind"]),
                    int(data["term"]),
                    TaskReport.model_validate(data["report"]).model_dump(mode="json"),
                )
            except (KeyError, TypeError, ValueError, ValidationError):
                self._set_aside(path)
                continue
            if tasks.get(item.task_id, item.term) > item.term:
                durable.remove(path)
                continue
            owed.append(item)
        ended = {item.task_id for item in owed}
        for task_id in tasks:
            durable.remove(self._task_path(task_id))
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        return owed, sorted(set(tasks) - ended)

    def _read(self, suffix: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(self.directory.glob(f"*.{suffix}.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._set_aside(path)
                continue
            if (
                isinstance(data, dict)
                and _TASK_ID.fullmatch(str(data.get("task_id")))
                and isinstance(data.get("term"), int)
            ):
                yield path, data
            else:
                self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        # Nothing that we wrote looks like this: the disk or a person did it. Kept for whoever looks into it.
        _log.error("a spool file cannot be understood and was set aside", extra=fields(path=str(path)))
        path.replace(path.with_name(f"{path.name}.bad"))
