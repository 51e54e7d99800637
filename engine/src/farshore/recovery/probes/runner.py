"""Tries a machine's probes until each is green or its time is over.

One thread takes turns with the quick ones: probes that are due are tried in order, each try has a deadline of its own,
an interval lies between the beginnings of two tries, and every probe's time counts from the beginning. What takes long
by its nature, a login or a name that is looked up, has a thread of its own, so that nobody waits for it. The clock and
the pause are given, so that tests need neither.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from farshore.errors import FarshoreError, NotFound, Retry
from farshore.model.plan import Probe
from farshore.model.probe import (
    AnsibleProbe,
    ConsoleProbe,
    GuestAgentProbe,
    HttpProbe,
    NetworkProbe,
    SshProbe,
    TcpProbe,
    WinRmProbe,
)
from farshore.model.task import ProbeOutcome
from farshore.platforms.contract import Compute
from farshore.recovery.probes import console, guest_agent, http, relayed, ssh, tcp, winrm
from farshore.recovery.probes.sight import (
    CANNOT_TRY,
    DNS_ELSEWHERE,
    DNS_FAILED,
    EVIDENCE_LIMIT_BYTES,
    NO_ADDRESS,
    NOT_ALLOWED,
    Sight,
    clean,
    red,
)

#: A try ends after this long, so that one mute port does not keep the others waiting.
TRY_S: Final = 5.0
#: A try of what has a thread of its own: a login takes its time on a guest that boots.
LONG_TRY_S: Final = 30.0
#: Refused logins after which a probe ends: more would lock the account.
MOST_REFUSED: Final = 3
#: Tries that are written down one by one; a guest that boots slowly makes many equal ones, which are counted.
_TRIES_KEPT: Final = 20

#: Returns the address to probe, None while nobody knows one.
Address = Callable[[], str | None]
#: Returns a secret of this node by its name.
Secret = Callable[[str], str]
#: Tries a probe of another kind: the probe, the machine's address, the deadline, the clock.
Look = Callable[[Probe, str, float, Callable[[], float]], Sight]


def no_secret(name: str) -> str:
    """Have no secret."""
    raise NotFound(f"this node has no secret {name!r}", code="secret-unknown", secret=name)


@dataclass(frozen=True, slots=True)
class Means:
    """What probes are tried with."""

    machine_id: str
    compute: Compute | None
    address: Address
    clock: Callable[[], float]
    wait: Callable[[float], bool]
    secret: Secret
    others: Mapping[str, Look]
    relay: relayed.Relay | None = None


@dataclass(slots=True)
class _Attempt:
    """How one probe went so far."""

    probe: Probe
    ends_at: float
    due_at: float
    tries: int = 0
    refused: int = 0
    last: Sight = field(default_factory=lambda: red(CANNOT_TRY, "not tried"))
    where: str = ""
    ended_at: float | None = None
    log: list[tuple[float, str, int]] = field(default_factory=list)

    def note(self, at_s: float, sight: Sight) -> None:
        self.tries += 1
        self.refused += sight.code == NOT_ALLOWED
        self.last = sight
        if self.log and self.log[-1][1] == sight.detail:
            first_s, detail, count = self.log[-1]
            self.log[-1] = (first_s, detail, count + 1)
        else:
            self.log.append((at_s, sight.detail, 1))

    @property
    def over(self) -> bool:
        """Whether no further try is to be made, whatever time is left."""
        tried_out = self.probe.retries is not None and self.tries > self.probe.retries
        return self.last.green or self.last.final or tried_out or self.refused >= MOST_REFUSED


def run(
    probes: Sequence[Probe],
    *,
    machine_id: str,
    compute: Compute | None,
    address: Address,
    clock: Callable[[], float],
    wait: Callable[[float], bool],
    secret: Secret = no_secret,
    others: Mapping[str, Look] | None = None,
    relay: relayed.Relay | None = None,
) -> tuple[ProbeOutcome, ...]:
    """Return one outcome per probe, in their order.

    Args:
        probes: what to try.
        machine_id: whose console is read, whose agent is asked.
        compute: the platform; console and agent probes need it.
        address: where the machine is, asked before each try.
        clock: monotonic seconds.
        wait: pauses that many seconds; True ends the run early.
        secret: returns the secrets that probes name.
        others: how to try kinds of probes that are not known here.
        relay: who may have to speak to the machine's ports in place of this node.
    """
    began = clock()
    means = Means(machine_id, compute, address, clock, wait, secret, others or {}, relay)
    attempts = [_Attempt(probe, began + probe.timeout, began) for probe in probes]
    quick = [attempt for attempt in attempts if not _is_long(attempt.probe, means)]
    lanes = [[attempt] for attempt in attempts if _is_long(attempt.probe, means)]
    if lanes:
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="probe") as pool:
            jobs = [pool.submit(_turns, lane, means, began) for lane in lanes]
            _turns(quick, means, began)
            for job in jobs:
                job.result()
    else:
        _turns(quick, means, began)
    ended = clock()
    return tuple(_outcome(attempt, machine_id, began, ended) for attempt in attempts)


def _is_long(probe: Probe, means: Means) -> bool:
    if isinstance(probe, NetworkProbe) and (probe.host is not None or means.relay is not None):
        return True
    return not isinstance(probe, TcpProbe | HttpProbe | ConsoleProbe)


def _longest_try_s(probe: Probe, means: Means) -> float:
    if isinstance(probe, AnsibleProbe):
        return probe.timeout  # tasks have retries of their own
    return LONG_TRY_S if _is_long(probe, means) else TRY_S


def _turns(attempts: list[_Attempt], means: Means, began: float) -> None:
    """Try probes by turns until each is green or its time is over, or the run is stopped."""
    while pending := [attempt for attempt in attempts if attempt.ended_at is None]:
        attempt = min(pending, key=lambda item: item.due_at)
        now = means.clock()
        if attempt.due_at > now and means.wait(min(attempt.due_at, attempt.ends_at) - now):
            return
        tried_at = means.clock()
        longest = _longest_try_s(attempt.probe, means)
        deadline = min(max(attempt.ends_at, tried_at + 0.1), tried_at + longest)
        attempt.note(tried_at - began, _look(attempt, means, deadline))
        now = means.clock()
        attempt.due_at = max(now, tried_at + attempt.probe.interval)
        if attempt.over or attempt.due_at >= attempt.ends_at:
            attempt.ended_at = now


def _look(attempt: _Attempt, means: Means, deadline: float) -> Sight:
    probe = attempt.probe
    if isinstance(probe, ConsoleProbe):
        if means.compute is None:
            return red(CANNOT_TRY, "the platform has no consoles")
        return console.look(probe, means.compute, means.machine_id)
    if isinstance(probe, GuestAgentProbe):
        if means.compute is None:
            return red(CANNOT_TRY, "the platform has no guest agents")
        return guest_agent.look(probe, means.compute, means.machine_id, deadline, means.clock, means.wait)
    found = means.address()
    attempt.where = found or attempt.where
    if isinstance(probe, NetworkProbe) and probe.host is not None:
        looked_up = _look_up(probe.host, found, means)
        if isinstance(looked_up, Sight):
            return looked_up
        found = looked_up
    if found is None and not (isinstance(probe, AnsibleProbe) and probe.on == "node"):
        return red(NO_ADDRESS, "the machine has no known address")
    if means.relay is not None and isinstance(probe, NetworkProbe):
        sight = relayed.look(probe, str(found), deadline, means.clock, means.relay)
        if sight is not None:
            return sight
    match probe:
        case TcpProbe():
            return tcp.look(probe, str(found), deadline, means.clock)
        case HttpProbe():
            return http.look(probe, str(found), deadline, means.clock)
        case SshProbe():
            return ssh.look(probe, str(found), deadline, means.clock, means.secret)
        case WinRmProbe():
            return winrm.look(probe, str(found), deadline, means.clock, means.secret)
    other = means.others.get(probe.type)
    if other is None:
        return red(CANNOT_TRY, f"this node has no means for probes of type {probe.type}", final=True)
    return other(probe, found or "", deadline, means.clock)


def _look_up(name: str, address: str | None, means: Means) -> str | Sight:
    """Return the machine's address that ``name`` leads to; a Sight if it leads nowhere, or to somebody else."""
    try:
        answers = {str(item[4][0]) for item in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return red(DNS_FAILED, f"the name {name} cannot be looked up: {reason or error}")
    known = {address} if address else set()
    if means.compute is not None:
        with contextlib.suppress(FarshoreError):
            known |= set(means.compute.addresses(means.machine_id))
    for one in sorted(answers):
        if one in known:
            return one
    if not known:
        return red(NO_ADDRESS, "the machine has no known address")
    led, own = ", ".join(sorted(answers)), ", ".join(sorted(known))
    return red(DNS_ELSEWHERE, f"the name {name} leads to {led}, which is not this machine ({own})")


def _outcome(attempt: _Attempt, machine_id: str, began: float, ended: float) -> ProbeOutcome:
    probe, last = attempt.probe, attempt.last
    seconds = (attempt.ended_at if attempt.ended_at is not None else ended) - began
    code = "" if last.green else last.code
    if last.green:
        detail = last.detail
    elif attempt.ended_at is None:
        code, detail = "stopped", f"stopped before its end; last: {last.detail}"
    elif last.final:
        detail = last.detail
    elif attempt.refused >= MOST_REFUSED:
        detail = f"refused {attempt.refused} times, not tried again so that no account is locked; last: {last.detail}"
    elif probe.retries is not None and attempt.tries > probe.retries:
        detail = f"not green in {attempt.tries} tries; last: {last.detail}"
    else:
        detail = f"not green within {probe.timeout:g} s; last: {last.detail}"
    return ProbeOutcome(
        type=probe.type,
        target=_target(probe, machine_id, attempt.where),
        green=last.green,
        seconds=round(seconds, 3),
        tries=attempt.tries,
        detail=clean(detail, 512),
        code=code,
        evidence=_evidence(attempt),
    )


def _target(probe: Probe, machine_id: str, address: str) -> str:
    name = probe.host if isinstance(probe, NetworkProbe) and probe.host else address
    host = f"[{name}]" if ":" in name else name or "?"
    match probe:
        case HttpProbe():
            return f"http://{host}:{probe.port}{probe.path}"
        case TcpProbe():
            return f"tcp://{host}:{probe.port}"
        case SshProbe():
            return f"ssh://{probe.user}@{host}:{probe.port}"
        case WinRmProbe():
            return f"winrm{'s' if probe.tls else ''}://{probe.user}@{host}:{probe.port}"
        case GuestAgentProbe():
            return f"guest agent of {machine_id}"
        case AnsibleProbe():
            return f"{probe.file} on {'the recovery node' if probe.on == 'node' else host}"
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
