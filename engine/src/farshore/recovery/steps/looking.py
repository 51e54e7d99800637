"""Takes what a person would see of a machine: its screen and its console text, as evidence."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from farshore.errors import NotFound, Permanent, Retry
from farshore.model.task import IsolationParams, IsolationResult, LookResult
from farshore.platforms.contract import Compute
from farshore.recovery.probes.sight import clean

#: Console text that is kept; the end of it.
CONSOLE_BYTES: Final = 64 * 1024
#: A text screen is 6 KiB, a desktop a few hundred; a larger one is told of, not kept.
SCREEN_BYTES: Final = 700 * 1024
assert 4 * (SCREEN_BYTES // 3 + 1) <= 1 << 20  # noqa: S101  what LookResult.screen may hold in base64


def machine(compute: Compute, machine_id: str, now: Callable[[], float]) -> LookResult:
    """Return what a machine shows now; that it shows nothing is an answer too.

    Raises:
        NotFound: there is no such machine.
    """
    compute.power(machine_id)
    notes = []
    screen = b""
    try:
        screen = compute.screen(machine_id)
    except (NotFound, Retry, Permanent) as error:
        notes.append(error.message)
    if len(screen) > SCREEN_BYTES:
        notes.append(f"the picture of its screen has {len(screen)} bytes, more than {SCREEN_BYTES}")
        screen = b""
    try:
        console = clean(compute.console(machine_id, CONSOLE_BYTES), CONSOLE_BYTES)
    except (NotFound, Retry) as error:
        console = ""
        notes.append(error.message)
    return LookResult(
        machine_id=machine_id,
        taken_at=now(),
        console=console,
        screen=base64.b64encode(screen).decode(),
        note="; ".join(notes),
    )


def isolation(compute: Compute, params: IsolationParams) -> IsolationResult:
    """Try whether networks lead anywhere, or read what their rules have counted since."""
    return compute.isolation(params.tag, params.networks, canaries=params.canaries)
