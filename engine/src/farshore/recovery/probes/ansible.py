"""Ansible: green when a file of tasks ends well, played on the recovery node or on the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from farshore.errors import FarshoreError, Reconnect, Retry
from farshore.model.plan import Probe
from farshore.model.probe import AnsibleProbe
from farshore.recovery.hooks.player import Player
from farshore.recovery.probes.runner import Look
from farshore.recovery.probes.sight import CANNOT_TRY, NO_ANSWER, WRONG_ANSWER, Sight, red


def looker(
    player: Player | None, digest: str | None, context: Mapping[str, Any], is_cancelled: Callable[[], bool]
) -> Mapping[str, Look]:
    """Return how to try probes that are files of the bundle ``digest``; nothing where the node plays none."""
    if player is None or digest is None:
        return {}

    def look(probe: Probe, address: str, deadline: float, clock: Callable[[], float]) -> Sight:
        wanted = cast("AnsibleProbe", probe)
        machine = {**(context.get("machine") or {}), "address": address or None}
        name = str(machine.get("name") or "machine")
        try:
            result = player.play(
                digest,
                wanted.file,
                deadline - clock(),
                is_cancelled=is_cancelled,
                context={**context, "machine": {**machine, "name": name}},
                variables=wanted.vars,
                secrets=wanted.secrets,
                host=name if wanted.on == "machine" else None,
            )
        except (Retry, Reconnect) as error:
            return red(CANNOT_TRY, error.message)
        except FarshoreError as error:
            return red(CANNOT_TRY, error.message, final=True)
        if result.ok and not result.done:
            return red(WRONG_ANSWER, "no task was played, which proves nothing", final=True)
        if result.ok:
            return Sight(green=True, detail=result.summary, seen=_end(result.output))
        return red(NO_ANSWER if result.killed else WRONG_ANSWER, result.summary, _end(result.output))

    return {"ansible": look}


def _end(output: str) -> str:
    """Return what counts most in little room: how it ended."""
    return output[-1500:]
