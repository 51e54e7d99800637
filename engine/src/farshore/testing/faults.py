"""Faults on purpose: a target that fails when it is told to.

The plan is a short text of rules, each ``<operation>[#n]:<what>``, separated by commas:

    write#3:full         the third write has no space left
    write#5+:full        every write from the fifth on
    flush:io             every flush fails
    write#7:kill         the process dies by SIGKILL before the seventh write
    flush#2:kill         ... before the second flush
    seal#2:retry         the second seal is refused for now
    write#4:delay=0.2    the fourth write takes 0.2 s longer
    put-done#3:kill      the process dies right after the third object was created in the manifest store

Operations: ``open write zero flush seal`` of a target and its drafts, ``put`` of a manifest store; each strikes before
the call, and with ``-done`` behind its name after it. Counting is over all drafts together and starts at 1, so a plan
and a workload of one connection always meet at the same place.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from farshore.errors import FarshoreError, NoSpace, Permanent, Retry
from farshore.platforms.contract import Draft, ManifestStore, Target

_RULE: Final = re.compile(
    r"^((?:open|write|zero|flush|seal|put)(?:-done)?)(?:#(\d+)(\+)?)?:(full|io|retry|kill|delay=(?P<seconds>\d+(?:\.\d+)?))$"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a plan. ``first`` to ``last`` are the calls that it applies to; ``last`` None means all after."""

    operation: str
    first: int
    last: int | None
    what: str
    seconds: float = 0.0


def parse(text: str) -> list[Rule]:
    """Return the rules in ``text``.

    Raises:
        ValueError: a rule is not one.
    """
    rules = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RULE.match(part)
        if not match:
            raise ValueError(f"{part!r} is no fault; write for example write#3:full")
        number = int(match[2]) if match[2] else 1
        last = number if match[2] and not match[3] else None
        rules.append(Rule(match[1], number, last, match[4].partition("=")[0], float(match["seconds"] or 0)))
    return rules


class Plan:
    """Counts calls and strikes where a rule says so. Safe from several threads."""

    def __init__(self, text: str) -> None:
        self._rules = parse(text)
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}

    def strike(self, operation: str) -> None:
        """Count a call of ``operation`` and do to it what the plan says."""
        with self._lock:
            number = self.counts[operation] = self.counts.get(operation, 0) + 1
        for rule in self._rules:
            if rule.operation == operation and rule.first <= number and (rule.last is None or number <= rule.last):
                _do(rule, number)

    @contextlib.contextmanager
    def around(self, operation: str) -> Iterator[None]:
        """Strike before and after what happens inside."""
        self.strike(operation)
        yield
        self.strike(f"{operation}-done")


def _do(rule: Rule, number: int) -> None:
    where = f"{rule.operation} number {number}"
    errors: dict[str, FarshoreError] = {
        "full": NoSpace(f"{where}: the pool has no space left", code="pool-full"),
        "io": Permanent(f"{where}: input/output error", code="file-io"),
        "retry": Retry(f"{where}: try again", code="throttled"),
    }
    if rule.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif rule.what == "delay":
        time.sleep(rule.seconds)
    else:
        raise errors[rule.what]


class FailingTarget:
    """A target whose drafts meet a plan of faults; everything else goes through to the real one."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self._target = target
        self._plan = plan

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> FailingDraft:
        """Open a draft of the real target."""
        with self._plan.around("open"):
            return FailingDraft(self._target.open(disk_key, size_bytes, base, key), self._plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class FailingDraft:
    """A draft that meets a plan of faults."""

    def __init__(self, draft: Draft, plan: Plan) -> None:
        self._draft = draft
        self._plan = plan

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write, if the plan lets it."""
        with self._plan.around("write"):
            self._draft.write(offset, buffer)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeros, if the plan lets it."""
        with self._plan.around("zero"):
            self._draft.write_zeroes(offset, length)

    def flush(self) -> None:
        """Flush, if the plan lets it."""
        with self._plan.around("flush"):
            self._draft.flush()

    def seal(self) -> str:
        """Seal, if the plan lets it."""
        with self._plan.around("seal"):
            return self._draft.seal()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)


class FailingManifests:
    """A manifest store that meets a plan of faults."""

    def __init__(self, store: ManifestStore, plan: Plan) -> None:
        self._store = store
        self._plan = plan

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object, if the plan lets it."""
        with self._plan.around("put"):
            return self._store.put_if_absent(key, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
