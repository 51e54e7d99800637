"""HTTP: green when one GET is answered with the status and a body that holds the text. Redirects are not followed."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import quote

from farshore.model.probe import HttpProbe
from farshore.recovery.probes.deadline import Connect, Connection
from farshore.recovery.probes.sight import READ_LIMIT_BYTES, WRONG_ANSWER, Sight, decode, of_error, red


def look(
    probe: HttpProbe, address: str, deadline: float, clock: Callable[[], float], connect: Connect = Connection
) -> Sight:
    """Send one GET and judge its answer, all before ``deadline``."""
    name = probe.host or address
    host = f"[{name}]" if ":" in name else name
    path = quote(probe.path, safe="/%?&=:@!$'()*+,;~-._")
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{probe.port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
    try:
        with connect(address, probe.port, deadline, clock) as connection:
            connection.send(request.encode("ascii"))
            # HTTPResponse asks of its socket only makefile(), which Connection has.
            response = http.client.HTTPResponse(cast("Any", connection), method="GET")
            response.begin()
            body = response.read(READ_LIMIT_BYTES)
            missing = response.length if len(body) < READ_LIMIT_BYTES else 0
    except http.client.HTTPException as error:
        return red(WRONG_ANSWER, f"no HTTP: {type(error).__name__}")
    except OSError as error:
        return of_error(error)
    text = decode(body)
    seen = f"HTTP status {response.status}\n{text}"
    if response.status != probe.status:
        return red(WRONG_ANSWER, f"status {response.status}, not {probe.status}", seen)
    if missing:
        return red(WRONG_ANSWER, f"the body was cut, {missing} bytes are missing", seen)
    if probe.contains not in text:
        return red(WRONG_ANSWER, f"status {response.status}, but the body lacks the text", seen)
    return Sight(green=True, detail=f"status {response.status}", seen=seen)
