"""A node that dies at every call of a checkpoint in AWS: before the call is done, or after it and before the reply.

The node is a process of its own, and the double kills it (SIGKILL) in the middle of its call. Whoever comes after it
goes on in the same term, or, with a guest that has written meanwhile, in another one. What is published then has to be
bit by bit one generation of the machine's disks, published once, and nothing may be left in the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from doubles import aws_site
from farshore.errors import FarshoreError

from benchmarks.aws_faults import Theatre, theatre
from benchmarks.aws_story import Published, Site, Stage, insist, patiently
from benchmarks.processes import ProgramFailed
from benchmarks.results import Check, Figure

_SERVICES: Final = ("ec2", "ebs", "s3")


@dataclass(frozen=True, slots=True)
class Death:
    """Where a node dies: at the ``nth`` call (from 0) of an operation, of any, in checkpoint 1 or 2; who goes on."""

    number: int
    nth: int
    when: Literal["kill", "kill-after"]
    successor: Literal["same term", "other term"]
    operation: str = "*"
    attached: bool = False

    def __str__(self) -> str:
        call = f"{self.operation} #{self.nth + 1}"
        way = ", to volumes" if self.attached else ""
        return f"checkpoint {self.number}{way}: {self.when} at {call}, then the {self.successor}"


class Nursery:
    """A process that forks nodes: what they need is loaded once. A context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.aws_crash"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def conceive(self, settings: dict[str, Any], machine_id: str, number: int, base: Published | None) -> int:
        """Return the process of a node that waits for :meth:`live`."""
        below = asdict(base) if base else None
        return self._ask({"settings": settings, "machine": machine_id, "number": number, "base": below})

    def live(self) -> int:
        """Let it do its checkpoint; return how it ended: 0, or the signal that killed it as a negative number."""
        return self._ask({})

    def _ask(self, question: dict[str, Any]) -> int:
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("it was started with pipes")
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ProgramFailed("the nursery of nodes has ended")
        return int(line)


def nurse() -> None:
    """Fork nodes as :class:`Nursery` asks; each stands still until it is told to live."""
    like = None
    for line in sys.stdin:
        asked = json.loads(line)
        if like is None:
            like = aws_site.account(asked["settings"])
            for service in _SERVICES:
                like.client(service)  # made here, used by the children only: no connection is shared
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                site = Site(aws_site.account(asked["settings"], like), asked["machine"])
                insist(site, asked["number"], 1, Published(**asked["base"]) if asked["base"] else None)
            except BaseException:  # noqa: BLE001 - it is told, and the process ends
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.waitpid(pid, os.WUNTRACED)
        print(pid, flush=True)  # noqa: T201 - the nursery's own language
        sys.stdin.readline()
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


class Life:
    """One machine and its checkpoints, the last of which is made by a process of its own."""

    def __init__(self, stage: Stage, nursery: Nursery, number: int) -> None:
        self._stage, self._nursery, self._number = stage, nursery, number
        self._base: Published | None = None
        if number == 2:
            stage.guest.write()
            self._base, _ = insist(stage.site(), 1, 1, None)
        stage.guest.write()
        stage.aws.forget_calls()

    def node(self, death: Death | None) -> int:
        """Let a node do the checkpoint, and die at a call; return how it ended."""
        stage = self._stage
        pid = self._nursery.conceive(stage.settings, stage.guest.machine.machine_id, self._number, self._base)
        if death is not None:
            stage.aws.fault(death.operation, death.when, skip=death.nth, pid=pid)
        return self._nursery.live()

    def drafts(self) -> set[str]:
        """Return the snapshots of the target that no manifest names yet."""
        rows = self._stage.aws.client("ec2").describe_snapshots(
            Filters=[{"Name": "tag-key", "Values": ["farshore:draft"]}]
        )["Snapshots"]
        return {row["SnapshotId"] for row in rows} - set(self._base.disks.values() if self._base else ())

    def succeed(self, successor: str) -> Published:
        """Let another node take over."""
        site, number = self._stage.site(), self._number
        if successor == "same term":
            done, _ = insist(site, number, 1, self._base)
            return done
        self._stage.guest.write()
        patiently(lambda: site.give_up(number, 1))
        return site.published(number) or insist(site, number, 2, self._base)[0]

    def wrong(self, done: Published) -> list[str]:
        """Say what is wrong now, then take everything away and say what is left."""
        stage, number = self._stage, self._number
        texts = [text for one in (self._base, done) if one is not None for text in stage.wrong(one)]
        if stage.manifests() != number:
            texts.append(f"{stage.manifests()} manifests of {number} checkpoints")
        patiently(lambda: stage.site().retire([1, 2]))
        return [*texts, *(f"left: {name}" for name in stage.orphans())]


def calls(house: Theatre, nursery: Nursery, number: int, *, attached: bool) -> int:
    """Return how many calls a checkpoint makes when nobody dies."""
    with house.stage(attached=attached) as stage:
        life = Life(stage, nursery, number)
        if life.node(None) != 0:
            raise ProgramFailed(f"checkpoint {number} does not come through although nobody dies")
        return len(stage.aws.calls())


def deaths(house: Theatre, nursery: Nursery) -> list[Death]:
    """Return all of them: each call, before and after, with one successor and then the other, in both ways."""
    return [
        Death(number, nth, when, "same term" if (nth + late) % 2 else "other term", attached=attached)
        for attached in (False, True)
        for number in (1, 2)
        for nth in range(calls(house, nursery, number, attached=attached))
        for late, when in enumerate[Literal["kill", "kill-after"]](("kill", "kill-after"))
    ]


def died(house: Theatre, nursery: Nursery, death: Death) -> tuple[str, list[str]]:
    """Play one; return what became of the snapshots that the dead node wrote, and what was wrong."""
    with house.stage(attached=death.attached) as stage:
        life = Life(stage, nursery, death.number)
        if (ended := life.node(death)) != -signal.SIGKILL:
            return "", [f"the node ended with {ended}"]
        before = life.drafts()
        try:
            done = life.succeed(death.successor)
        except (FarshoreError, AssertionError) as error:
            return "", [f"{type(error).__name__}: {error}"]
        kept = before & set(done.disks.values())
        fate = "none begun" if not before else "gone on with" if kept == before else "discarded" if not kept else "both"
        return fate, life.wrong(done)


def figure(say: Callable[[str], None], size: str, folder: Path) -> Figure:
    """Measure ``aws-crash``."""
    row, fates, wrong = Figure("aws-crash"), Counter[str](), dict[str, list[str]]()
    with theatre(folder) as house, Nursery() as nursery:
        chosen = deaths(house, nursery)
        chosen = chosen if size == "full" else chosen[::9]
        for count, death in enumerate(chosen, 1):
            fate, texts = died(house, nursery, death)
            fates[f"{death.successor}: {fate}"] += 1
            if texts:
                wrong[str(death)] = texts
                say(f"{death}: {'; '.join(texts)}")
            if count % 50 == 0:
                say(f"{count} of {len(chosen)} deaths")
    row.checks += [
        Check("wrong", float(len(wrong)), "<=", 0, "deaths"),
        Check("deaths", float(len(chosen)), ">=", 150, "at each call, before and after"),
    ]
    row.details |= {"snapshots of the dead": fates, "wrong": wrong}
    return row


if __name__ == "__main__":
    nurse()
