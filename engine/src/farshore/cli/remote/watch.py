"""Following a run until it ends: a live table on a terminal, one line for each change elsewhere.

Nothing here owns the run. Ctrl-C, a closed terminal or a lost connection leave it going.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import typer

from farshore.cli import formats
from farshore.cli.output import console, facts, grid, plain
from farshore.errors import FarshoreError, Retry

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farshore.cli.context import Shell
    from farshore.cli.remote.client import Client

ENDED: Final = frozenset({"succeeded", "partial", "failed", "cancelled"})
#: States in which a run waits for somebody.
WAITING: Final = frozenset({"waiting-approval", "paused"})
INTERVAL_S: Final = 0.7
#: How long a run is followed while the control plane does not answer: it may just be starting again.
PATIENCE_S: Final = 120.0


class RunEndedBadly(FarshoreError):
    """A run that was waited for did not succeed."""

    code = "run-failed"
    status = 409
    exit_status = 1


def states(client: Client, run_id: str, *, pause: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """Yield the run again and again until it has ended; the last one is the ended one.

    A control plane that is away is waited for.

    Raises:
        FarshoreError: if the run cannot be read, or the control plane is away for longer than two minutes.
    """
    from farshore.cli.remote.client import segment

    silent_since: float | None = None
    while True:
        try:
            run: dict[str, Any] = client.get(f"/runs/{segment(run_id)}")
        except Retry:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
        else:
            silent_since = None
            yield run
            if run["state"] in ENDED:
                return
        pause(INTERVAL_S)


def follow(here: Shell, run_id: str) -> dict[str, Any]:
    """Show a run's progress until it ends and return it. On Ctrl-C leave it going, say so, and exit with 130."""
    out = console(stderr=here.out.as_json)
    try:
        if out.is_terminal and not here.out.as_json:
            return _live(here, run_id)
        lines = Lines()
        run: dict[str, Any] = {}
        for run in states(here.client, run_id):
            for line in lines.news(run):
                if not here.out.as_json:
                    out.print(plain(line), markup=False)
    except KeyboardInterrupt:
        here.out.warn(
            f"stopped watching; run {run_id} goes on. Watch again: 'farshore run watch {run_id}'. "
            f"Stop it: 'farshore run cancel {run_id}'."
        )
        raise typer.Exit(130) from None
    return run


def _live(here: Shell, run_id: str) -> dict[str, Any]:
    from rich.live import Live

    run: dict[str, Any] = {}
    with Live(console=console(), refresh_per_second=4, transient=True) as live:
        for run in states(here.client, run_id):
            live.update(steps_table(run, title=f"{headline(run)}   {run.get('next') or progress(run)}".rstrip()))
    return run


class Lines:
    """Turns successive readings of a run into the lines that are new."""

    def __init__(self) -> None:
        self._said: set[tuple[str, ...]] = set()
        self._note = ""
        self._state = ""
        self._next = ""

    def news(self, run: dict[str, Any]) -> list[str]:
        """Return what has changed since the last reading, one line each."""
        lines = []
        for index, step in enumerate(run["steps"]):
            mark: tuple[str, ...] = (str(index), step["name"], step["machine"] or "", step["state"])
            if mark in self._said or step["state"] == "pending":
                continue
            self._said.add(mark)
            took = (
                f" in {formats.duration(step['seconds'])}" if step["ended_at"] and step["seconds"] is not None else ""
            )
            about = f": {detail(step)}" if detail(step) else ""
            lines.append(f"{label(step)}: {step['state']}{took}{about}")
        for cycle in run["cycles"]:
            mark = ("cycle", str(cycle["checkpoint_id"]))
            if mark not in self._said and cycle.get("stats"):
                self._said.add(mark)
                lines.append(cycle_text(cycle))
        # What waits for somebody is said with what they have to do; the rest shows in the steps.
        if (waits := run.get("next") or "") and waits != self._next:
            lines.append(f"{run['state']}: {waits}")
        elif run["state"] != self._state and self._state in WAITING and run["state"] not in ENDED:
            lines.append(f"{run['state']}: goes on")
        self._state, self._next = run["state"], waits
        note = progress(run)
        if note != self._note and note and not lines and run["state"] not in ENDED:
            lines.append(note)
        self._note = note
        return lines


def label(step: dict[str, Any]) -> str:
    """Return the name of a step with its machine."""
    return f"{step['name']} {step['machine']}" if step["machine"] else str(step["name"])


def detail(step: dict[str, Any]) -> str:
    """Return what is to be said about a step: its error before all else."""
    error = step.get("error")
    if isinstance(error, dict):
        return str(error.get("detail") or error.get("message") or "")
    return str(error or step["detail"] or "")


def headline(run: dict[str, Any]) -> str:
    """Return what a run is, in one line."""
    return f"{run['kind']} of {run['plan']} ({run['run_id']}): {run['state']}"


def progress(run: dict[str, Any]) -> str:
    """Return how many bytes of how many are done, and the note."""
    found = run.get("progress") or {}
    total, done = found.get("total_bytes") or 0, found.get("done_bytes") or 0
    parts = [f"{formats.size(done)} of {formats.size(total)}"] if total else []
    if found.get("wire_bytes_per_s") is not None:
        parts.append(f"{formats.rate(found['wire_bytes_per_s'])} on the wire")
    if found.get("note"):
        parts.append(str(found["note"]))
    return ", ".join(parts)


def cycle_text(cycle: dict[str, Any]) -> str:
    """Return what one cycle moved, in one line."""
    stats = cycle["stats"]
    return (
        f"{cycle['group_id']}: {stats['mode']} cycle moved {formats.size(stats['moved_bytes'])} of "
        f"{formats.size(stats['disk_bytes'])} ({formats.share(stats['moved_bytes'], stats['disk_bytes'])}) "
        f"in {formats.duration(stats['seconds'])} → {cycle['checkpoint_id']}"
        + (f", {formats.size(stats['resent_bytes'])} sent again" if stats.get("resent_bytes") else "")
    )


def disks_table(cycles: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return what each disk of the cycles took."""
    return grid(
        ("disk", "mode", ">moved", ">rate", ">window", ">changes", ">sent again", ">retries"),
        (
            (
                disk["disk_key"],
                disk["mode"],
                formats.size(disk["moved_bytes"]),
                f"{formats.size(disk['moved_bytes'] / disk['seconds'])}/s" if disk["seconds"] else "—",
                formats.size(disk["level_bytes"] or None),
                len(disk["level_changes"]),
                formats.size(disk["resent_bytes"]),
                disk["retries"],
            )
            for cycle in cycles
            for disk in cycle["stats"].get("disks") or ()
        ),
        title=title,
        empty="their nodes did not tell",
    )


def steps_table(run: dict[str, Any], title: str = "") -> RenderableType:
    """Return the steps with their durations."""
    return grid(
        ("step", "machine", "state", ">took", "detail"),
        (
            (
                step["name"],
                step["machine"],
                formats.state(step["state"]),
                formats.duration(step["seconds"]),
                detail(step),
            )
            for step in run["steps"]
        ),
        title=title,
        empty="no step yet",
    )


def summary(here: Shell, run: dict[str, Any], *, brief: bool = False) -> list[RenderableType]:
    """Return everything about a run for people; with ``brief`` only what its lines have not told."""
    parts: list[RenderableType] = [
        facts(
            (
                ("run", run["run_id"]),
                ("kind", run["kind"]),
                ("plan", run["plan"]),
                ("state", formats.state(run["state"])),
                ("by", run["actor"]),
                ("started", formats.clock(run["started_at"])),
                ("took", formats.took(run["started_at"], run["ended_at"]) if run["ended_at"] else None),
                ("progress", progress(run) if run["state"] not in ENDED else None),
                ("next", run.get("next") or None),
                ("approved by", ", ".join(item["actor"] for item in (run.get("approval") or {}).get("by", ())) or None),
                ("goes on with", run.get("retry_of")),
                ("gone on with by", run.get("retried_by")),
                ("page", here.page(run["url"])),
                ("report", f"farshore run report {run['run_id']} -o FILE.html" if run["report_url"] else None),
            )
        ),
    ]
    if not brief:
        parts.append(steps_table(run, title="\nsteps"))
    if run["machines"]:
        parts.append(machines_table(run["machines"], title="\nmachines"))
    moved = [cycle for cycle in run["cycles"] if cycle.get("stats")]
    if moved and not brief:
        parts += ["\ncycles", *map(cycle_text, moved), disks_table(moved, title="\ndisks")]
    return parts


def machines_table(machines: list[dict[str, Any]], title: str = "") -> RenderableType:
    """Return a run's machines with measured RPO and RTO and what the probes said."""
    return grid(
        ("machine", "state", ">RPO", ">RTO", "address", "checkpoint", "probes"),
        (
            (
                machine["name"],
                formats.state(machine["state"]),
                formats.duration(machine["rpo_s"]),
                formats.duration(machine["rto_s"]),
                machine["address"],
                machine["checkpoint_id"],
                "\n".join(probe_text(probe) for probe in machine["probes"] or []) or "—",
            )
            for machine in machines
        ),
        title=title,
    )


def probe_text(probe: dict[str, Any]) -> str:
    """Return a probe's verdict in one line."""
    verdict = "green" if probe["green"] else "RED"
    detail = "" if probe["green"] or not probe.get("detail") else f": {probe['detail']}"
    kind, target = str(probe["type"]), str(probe["target"])
    title = target if target.startswith(kind) else f"{kind} {target}"
    return f"{title} {verdict} after {formats.duration(probe['seconds'])}{detail}"


def failure(run: dict[str, Any]) -> FarshoreError | None:
    """Return the error for a run that has ended and did not succeed, with the run's own code and hint."""
    if run["state"] not in ENDED or run["state"] == "succeeded":
        return None
    error = run["error"] or {}
    reason = str(error.get("detail") or error.get("message") or error.get("title") or "")
    return RunEndedBadly(
        f"{run['kind']} run {run['run_id']} of plan {run['plan']} ended {run['state']}"
        + (f": {reason}" if reason else ""),
        code=error.get("code") or ("run-cancelled" if run["state"] == "cancelled" else None),
        hint=str(error.get("hint") or f"'farshore run show {run['run_id']}' shows its steps."),
        field=error.get("field"),
        run_id=run["run_id"],
    )


def settle(here: Shell, run_id: str, *, quiet: bool = False) -> dict[str, Any]:
    """Follow a run to its end, show it, and return it.

    Raises:
        RunEndedBadly: if it did not succeed.
    """
    run = follow(here, run_id)
    error = failure(run)
    if error or not quiet:
        # On a terminal the live table is gone by now; elsewhere the lines stand above.
        here.out.show(run, lambda: summary(here, run, brief=not console().is_terminal))
    if error:
        raise error
    return run
