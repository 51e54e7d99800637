"""Console: green when the machine's console text holds the marker."""

from __future__ import annotations

from farshore.errors import Retry
from farshore.model.probe import ConsoleProbe
from farshore.platforms.contract import Compute
from farshore.recovery.probes.sight import NO_ANSWER, READ_LIMIT_BYTES, WRONG_ANSWER, Sight, red


def look(probe: ConsoleProbe, compute: Compute, machine_id: str) -> Sight:
    """Read the end of the console's text."""
    try:
        text = compute.console(machine_id, READ_LIMIT_BYTES)
    except Retry as error:
        return red(NO_ANSWER, error.message)
    around = text.rfind(probe.contains)
    if around < 0:
        return red(WRONG_ANSWER, "the console lacks the text", text[-1024:])
    return Sight(green=True, detail="text seen", seen=text[max(0, around - 512) : around + len(probe.contains) + 256])
