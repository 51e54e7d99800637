"""TCP: green when the port sends the banner.

A bare connect proves nothing: user-mode networks and proxies accept first and reset later.
"""

from __future__ import annotations

from collections.abc import Callable

from farshore.model.probe import TcpProbe
from farshore.recovery.probes.deadline import Connect, Connection
from farshore.recovery.probes.sight import READ_LIMIT_BYTES, WRONG_ANSWER, Sight, decode, of_error, red


def look(
    probe: TcpProbe, address: str, deadline: float, clock: Callable[[], float], connect: Connect = Connection
) -> Sight:
    """Read from the port until the banner has come, the peer has closed, or ``deadline``."""
    wanted = probe.banner.encode()
    seen = b""
    try:
        with connect(address, probe.port, deadline, clock) as connection:
            while wanted not in seen and len(seen) < READ_LIMIT_BYTES:
                data = connection.read(4096)
                if not data:
                    return red(WRONG_ANSWER, f"closed after {len(seen)} bytes, no banner", decode(seen))
                seen += data
    except OSError as error:
        return of_error(error, decode(seen))
    if wanted not in seen:
        return red(WRONG_ANSWER, f"no banner in {len(seen)} bytes", decode(seen))
    return Sight(green=True, detail="banner seen", seen=decode(seen))
