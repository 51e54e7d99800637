"""Guest agent: green when it answers, and the command that it runs, where one is named, ends as expected.

The agent is the QEMU guest agent (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html). An answer proves that the
guest's user space is up; what the machine serves is for other probes to say.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

from farshore.errors import FarshoreError, Retry
from farshore.model.probe import GuestAgentProbe
from farshore.platforms.contract import Compute
from farshore.recovery.probes.sight import NO_ANSWER, READ_LIMIT_BYTES, WRONG_ANSWER, Sight, decode, red
from farshore.recovery.probes.ssh import judged

_POLL_S: Final = 0.3


def look(
    probe: GuestAgentProbe,
    compute: Compute,
    machine_id: str,
    deadline: float,
    clock: Callable[[], float],
    wait: Callable[[float], bool],
) -> Sight:
    """Ping the agent, run the command if there is one, all before ``deadline``."""

    def ask(command: str, **arguments: Any) -> Any:
        request: dict[str, Any] = {"execute": command, **({"arguments": arguments} if arguments else {})}
        return compute.agent(machine_id, request, max(1.0, deadline - clock()))

    try:
        ask("guest-ping")
        if not probe.command:
            return Sight(green=True, detail="the agent answers")
        started = ask("guest-exec", path=probe.command[0], arg=list(probe.command[1:]), **{"capture-output": True})
        while True:
            status = ask("guest-exec-status", pid=started["pid"])
            if status.get("exited"):
                break
            if clock() >= deadline or wait(_POLL_S):
                return red(NO_ANSWER, "the command did not end in time")
        text = _text(status, "out-data") + _text(status, "err-data")
        ended = int(status.get("exitcode", -int(status.get("signal", 1))))
    except Retry as error:
        return red(NO_ANSWER, error.message)
    except FarshoreError as error:
        return red(error.code, error.message)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        return red(WRONG_ANSWER, f"the agent does not speak its protocol: {type(error).__name__}")
    seen = f"> {' '.join(probe.command)}\n{text}\nexit status {ended}"
    return judged(ended, probe.exit, text, probe.contains, seen)


def _text(status: dict[str, Any], key: str) -> str:
    return decode(base64.b64decode(str(status.get(key, "")))[:READ_LIMIT_BYTES])
