"""Console: green when the machine's console text holds the marker."""

from __future__ import annotations

from farshore.errors import Retry
from farshore.model.plan import ConsoleProbe
from farshore.platforms.contract import Compute
from farshore.recovery.probes.sight import READ_LIMIT_BYTES, Sight


def look(probe: ConsoleProbe, compute: Compute, machine_id: str) -> Sight:
    """Read the end of the console's text."""
    try:
        text = compute.console(machine_id, READ_LIMIT_BYTES)
    except Retry as error:
        return Sight(green=False, detail=error.message)
    around = text.rfind(probe.contains)
    if around < 0:
        return Sight(green=False, detail="the console lacks the text", seen=text[-1024:])
    return Sight(green=True, detail="text seen", seen=text[max(0, around - 512) : around + len(probe.contains) + 256])
