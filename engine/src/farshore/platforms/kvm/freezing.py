"""Freezing guests by their agents for an application-consistent point, and letting them go again, whatever happens.

The agent (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html) freezes all file systems of a guest (Windows: by
VSS) and runs its own freeze hooks where its owner has set them up. Commands of ours run in a guest only where the plan
names them. Order: commands before → freeze → (the point) → is it still frozen? → thaw → commands after.

A freeze that was ordered is ended again even if the order failed or was never answered: it may have been carried out.
An agent that was started again in between, and knows nothing of it, thaws what is frozen all the same; so it is told
to, whatever it says about that, as soon as it is there again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from farshore.errors import FarshoreError, Permanent, Retry
from farshore.model.plan import Quiesce
from farshore.platforms.kvm.connection import asking

try:
    import libvirt_qemu as _binding
except ImportError:  # the same optional extra as libvirt's
    _binding = None

#: An agent that is there answers a ping at once; under emulation in a second.
PING_S: Final = 5
#: Windows gives up a freeze by itself after 10 s; what takes longer would hold the others' guests too.
FREEZE_S: Final = 10
THAW_S: Final = 20
#: How long a guest is told to thaw until it does, before it is given up for now: an agent that is started again by its
#: guest is there within seconds. The record of the point makes later points, sweeps and lives go on.
THAW_WITHIN_S: Final = 60.0
#: The first pause between two tries, and the longest: an agent that is not there refuses at once.
THAW_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
_POLL_S: Final = 0.1
_PARALLEL: Final = 16
_OUTPUT_MAX: Final = 500
_log = logging.getLogger(__name__)


@dataclass
class Frozen:
    """What came of freezing one guest. ``reason``: why it cannot count as quiesced, empty if it can."""

    file_systems: int = 0
    frozen_s: float = 0.0
    reason: str = ""
    ran: dict[str, str] = field(default_factory=dict)
    since: float | None = None
    stuck: bool = False

    def told(self) -> dict[str, Any]:
        """Return it as evidence."""
        told: dict[str, Any] = {"file_systems": self.file_systems, "frozen_s": round(self.frozen_s, 4)}
        if self.ran:
            told["ran"] = self.ran
        if self.reason:
            told["reason"] = self.reason
        return told


def ask(handle: Any, command: str, timeout_s: int, **arguments: Any) -> Any:
    """Return what a guest's agent answers.

    Raises:
        FarshoreError: there is no agent, it does not answer in time, or it refuses.
    """
    if _binding is None:
        raise Permanent("libvirt's binding for guest agents is not installed", code="missing-tool")
    order = {"execute": command, **({"arguments": arguments} if arguments else {})}
    with asking(command):
        answer = _binding.qemuAgentCommand(handle, json.dumps(order), timeout_s, 0)
    return json.loads(answer)["return"]


@contextlib.contextmanager
def frozen(handles: Sequence[tuple[str, Any]], quiesce: Mapping[str, Quiesce]) -> Iterator[dict[str, Frozen]]:
    """Freeze what can be frozen, then thaw all; yields what came of each machine, complete once the block has ended.

    A guest that cannot be frozen keeps nobody from going on; its ``reason`` says so.

    Raises:
        Retry: a guest could not be thawed (``machine-frozen``, after all others were).
    """
    outcomes = {machine_id: Frozen() for machine_id, _ in handles}
    if not handles:
        yield outcomes
        return
    with ThreadPoolExecutor(min(len(handles), _PARALLEL), thread_name_prefix="agent") as pool:

        def each(act: Callable[[Any, Quiesce, Frozen], None]) -> None:
            jobs = [
                pool.submit(act, handle, quiesce.get(machine_id, Quiesce()), outcomes[machine_id])
                for machine_id, handle in handles
            ]
            for job in jobs:
                job.result()

        try:
            each(_prepare)
            each(_freeze)
            yield outcomes
        finally:
            each(_thaw)
            each(_after)
            # Also instead of an error of the point: that one is told again by the next try, this one could be lost.
            stuck = [machine_id for machine_id, outcome in outcomes.items() if outcome.stuck]
            if stuck:
                raise Retry(
                    f"machines {', '.join(stuck)} may still be frozen after the point",
                    code="machine-frozen",
                    hint="Thaw them: virsh domfsthaw. The next point tries it again.",
                    machines=stuck,
                )


def thaw(handle: Any) -> bool:
    """Thaw a guest that an earlier life of this node may have frozen; say whether anything was frozen.

    Its agent need not know of the freeze, so it is told to thaw whatever it says.

    Raises:
        FarshoreError: its agent does not answer, or the guest is still frozen.
    """
    count = ask(handle, "guest-fsfreeze-thaw", THAW_S)
    if ask(handle, "guest-fsfreeze-status", PING_S) != "thawed":
        raise Retry("the guest is still frozen", code="machine-frozen")
    return bool(count)


def _prepare(handle: Any, quiesce: Quiesce, outcome: Frozen) -> None:
    try:
        ask(handle, "guest-ping", PING_S)
    except FarshoreError as error:
        outcome.reason = f"no guest agent answers: {_last(error)}"
        return
    if quiesce.before:
        outcome.ran["before"] = _run(handle, quiesce.before, quiesce.timeout)
        if outcome.ran["before"] != "exit 0":
            outcome.reason = f"{quiesce.before[0]}: {outcome.ran['before']}"


def _freeze(handle: Any, _quiesce: Quiesce, outcome: Frozen) -> None:
    if outcome.reason:
        return
    outcome.since = time.monotonic()
    try:
        outcome.file_systems = int(ask(handle, "guest-fsfreeze-freeze", FREEZE_S))
    except (FarshoreError, TypeError, ValueError) as error:
        outcome.reason = f"the freeze failed: {_last(error)}"
        return
    if outcome.file_systems == 0:
        outcome.reason = "the guest agent found no file system to freeze"


def _thaw(handle: Any, _quiesce: Quiesce, outcome: Frozen) -> None:
    if outcome.since is None:
        return
    deadline, pause_s = time.monotonic() + THAW_WITHIN_S, THAW_PAUSE_S
    while True:
        outcome.stuck = not _try_to_thaw(handle, outcome)
        if not outcome.stuck or time.monotonic() + pause_s > deadline:
            break
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    outcome.frozen_s = time.monotonic() - outcome.since


def _try_to_thaw(handle: Any, outcome: Frozen) -> bool:
    """Thaw a guest; say whether it is thawed for sure. What keeps it from counting goes to ``outcome``."""
    try:
        if not outcome.reason and ask(handle, "guest-fsfreeze-status", PING_S) != "frozen":
            outcome.reason = (
                "it was thawed before the point was taken, by the guest's own time-out or by its owner,"
                " or its agent was started again"
            )
        thawed = thaw(handle)
    except (FarshoreError, TypeError, ValueError) as error:
        _log.warning("a guest was not thawed: %s", error)
        outcome.reason = outcome.reason or f"the thaw failed: {_last(error)}"
        return False
    if not thawed and not outcome.reason:
        outcome.reason = "nothing was frozen any more when it was thawed"
    return True


def _after(handle: Any, quiesce: Quiesce, outcome: Frozen) -> None:
    if quiesce.after and (outcome.since is not None or "before" in outcome.ran):
        outcome.ran["after"] = _run(handle, quiesce.after, quiesce.timeout)
        if outcome.ran["after"] != "exit 0":
            _log.warning("%s in the guest: %s", quiesce.after[0], outcome.ran["after"])


def _run(handle: Any, command: Sequence[str], timeout_s: float) -> str:
    """Run a command in a guest and return how it ended: ``exit 0``, or what went wrong."""
    deadline = time.monotonic() + timeout_s
    try:
        begun = ask(
            handle, "guest-exec", PING_S, **{"path": command[0], "arg": list(command[1:]), "capture-output": True}
        )
        while not (status := ask(handle, "guest-exec-status", PING_S, pid=begun["pid"]))["exited"]:
            if time.monotonic() > deadline:
                return f"it has not ended after {timeout_s:g} s"
            time.sleep(_POLL_S)
    except (FarshoreError, KeyError, TypeError) as error:
        return f"it could not be run: {_last(error)}"
    if "signal" in status:
        return f"signal {status['signal']}"
    said = "".join(_text(status.get(stream, "")) for stream in ("err-data", "out-data"))
    code = int(status.get("exitcode", -1))
    return f"exit {code}" + (f": {said.strip()[:_OUTPUT_MAX]}" if code and said.strip() else "")


def _text(encoded: Any) -> str:
    with contextlib.suppress(ValueError):
        return base64.b64decode(str(encoded)).decode(errors="replace")
    return ""


def _last(error: Exception) -> str:
    """Return what libvirt or the agent said, without our words before it."""
    return str(error).rpartition("failed: ")[2] or str(error)
