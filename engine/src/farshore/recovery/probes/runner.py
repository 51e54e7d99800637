"""Tries a machine's probes until each is green or its time is over.

One thread takes turns: probes that are due are tried in order, each try has a deadline of its own, an interval lies
between the beginnings of two tries, and every probe's time counts from the beginning. The clock and the pause are
given, so that tests need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from farshore.errors import NotFound, Retry
from farshore.model.plan import ConsoleProbe, HttpProbe, Probe, TcpProbe
from farshore.model.task import ProbeOutcome
from farshore.platforms.contract import Compute
from farshore.recovery.probes import console, http, tcp
from farshore.recovery.probes.sight import EVIDENCE_LIMIT_BYTES, Sight, clean

#: A try ends after this long, so that one mute port does not keep the others waiting.
TRY_S: Final = 5.0
#: Tries that are written down one by one; a guest that boots slowly makes many equal ones, which are counted.
_TRIES_KEPT: Final = 20


@dataclass(slots=True)
class _Attempt:
    """How one probe went so far."""

    probe: Probe
    ends_at: float
    due_at: float
    tries: int = 0
    last: Sight = field(default_factory=lambda: Sight(green=False, detail="not tried"))
    ended_at: float | None = None
    log: list[tuple[float, str, int]] = field(default_factory=list)

    def note(self, at_s: float, sight: Sight) -> None:
        self.tries += 1
        self.last = sight
        if self.log and self.log[-1][1] == sight.detail:
            first_s, detail, count = self.log[-1]
            self.log[-1] = (first_s, detail, count + 1)
        else:
            self.log.append((at_s, sight.detail, 1))


#: Returns the address to probe, None while nobody knows one.
Address = Callable[[], str | None]


def run(
    probes: Sequence[Probe],
    *,
    machine_id: str,
    compute: Compute | None,
    address: Address,
    clock: Callable[[], float],
    wait: Callable[[float], bool],
) -> tuple[ProbeOutcome, ...]:
    """Return one outcome per probe, in their order.

    Args:
        probes: what to try.
        machine_id: whose console is read.
        compute: the platform; console probes need it.
        address: where the machine is, asked before each try.
        clock: monotonic seconds.
        wait: pauses that many seconds; True ends the run early.
    """
    began = clock()
    attempts = [_Attempt(probe, began + probe.timeout, began) for probe in probes]
    where: dict[int, str] = {}
    while pending := [attempt for attempt in attempts if attempt.ended_at is None]:
        attempt = min(pending, key=lambda item: item.due_at)
        now = clock()
        if attempt.due_at > now and wait(min(attempt.due_at, attempt.ends_at) - now):
            break
        found = address() if not isinstance(attempt.probe, ConsoleProbe) else None
        where[id(attempt)] = found or where.get(id(attempt), "")
        tried_at = clock()
        deadline = min(max(attempt.ends_at, tried_at + 0.1), tried_at + TRY_S)
        attempt.note(tried_at - began, _look(attempt.probe, machine_id, compute, found, deadline, clock))
        now = clock()
        attempt.due_at = max(now, tried_at + attempt.probe.interval)
        if attempt.last.green or attempt.due_at >= attempt.ends_at:
            attempt.ended_at = now
    ended = clock()
    return tuple(_outcome(attempt, machine_id, where.get(id(attempt), ""), began, ended) for attempt in attempts)


def _look(
    probe: Probe,
    machine_id: str,
    compute: Compute | None,
    address: str | None,
    deadline: float,
    clock: Callable[[], float],
) -> Sight:
    if isinstance(probe, ConsoleProbe):
        if compute is None:
            return Sight(green=False, detail="the platform has no consoles")
        return console.look(probe, compute, machine_id)
    if address is None:
        return Sight(green=False, detail="the machine has no known address")
    if isinstance(probe, HttpProbe):
        return http.look(probe, address, deadline, clock)
    return tcp.look(probe, address, deadline, clock)


def _outcome(attempt: _Attempt, machine_id: str, address: str, began: float, ended: float) -> ProbeOutcome:
    probe = attempt.probe
    seconds = (attempt.ended_at if attempt.ended_at is not None else ended) - began
    if attempt.last.green:
        detail = attempt.last.detail
    elif attempt.ended_at is None:
        detail = f"stopped before its end; last: {attempt.last.detail}"
    else:
        detail = f"not green within {probe.timeout:g} s; last: {attempt.last.detail}"
    return ProbeOutcome(
        type=probe.type,
        target=_target(probe, machine_id, address),
        green=attempt.last.green,
        seconds=round(seconds, 3),
        tries=attempt.tries,
        detail=clean(detail, 512),
        evidence=_evidence(attempt),
    )


def _target(probe: Probe, machine_id: str, address: str) -> str:
    host = f"[{address}]" if ":" in address else address or "?"
    if isinstance(probe, HttpProbe):
        return f"http://{host}:{probe.port}{probe.path}"
    if isinstance(probe, TcpProbe):
        return f"tcp://{host}:{probe.port}"
    return f"console of {machine_id}"


def _evidence(attempt: _Attempt) -> str:
    """Return the tries, oldest first, and what the last one saw."""
    skipped = max(0, len(attempt.log) - _TRIES_KEPT)
    lines = [
        f"{at_s:.1f} s: {detail}" + (f" ({count} times)" if count > 1 else "") for at_s, detail, count in attempt.log
    ]
    if skipped:
        lines[1 : skipped + 1] = [f"... {skipped} more"]
    head = clean("\n".join(lines), EVIDENCE_LIMIT_BYTES // 2)
    seen = clean(attempt.last.seen)
    return clean(f"{head}\n--\n{seen}" if seen else head)


def addresses_of(compute: Compute | None, machine_id: str, given: str | None) -> Address:
    """Return a look-up of a machine's address: the one that is given, else what the platform knows by then."""

    def find() -> str | None:
        if given or compute is None:
            return given
        try:
            known = compute.addresses(machine_id)
        except (NotFound, Retry):
            return None
        return known[0] if known else None

    return find


def console_tail(compute: Compute, machine_id: str, tail_bytes: int) -> str:
    """Return the end of a machine's console text, cleaned; empty where there is none."""
    try:
        return clean(compute.console(machine_id, tail_bytes), tail_bytes)
    except (NotFound, Retry):
        return ""
