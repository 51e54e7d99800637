"""The laboratory's relay, seen from outside: which routes there are, and how to cut one.

Default routes (all on 127.0.0.1 of the namespace named):

=============  ==========================  =======================
name           listens                     carries to
=============  ==========================  =======================
alpha-api      alpha, control plane port   the machine, same port
alpha-node     alpha, node port            the machine, same port
beta-api       beta, control plane port    the machine, same port
beta-node      beta, node port             the machine, same port
beta-to-alpha  beta, 9101                  alpha, 9101 (its data)
alpha-to-beta  alpha, 9102                 beta, 9102 (its data)
=============  ==========================  =======================
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from farshore import durable
from farshore.errors import Conflict, NotFound, Permanent, Unavailable
from farshore.testing.lab import process

HOST: Final = "host"
API_PORT: Final = 8443
NODE_PORT: Final = 8444
DATA_PORTS: Final = {"alpha": 9101, "beta": 9102}
START_TIMEOUT_S: Final = 20.0
_DAEMON: Final = str(Path(__file__).parent / "relaydaemon.py")

State = Literal["open", "cut", "stalled"]


@dataclass(frozen=True, slots=True)
class Route:
    """From ``port`` on 127.0.0.1 in the namespace ``listen`` to ``to_host:to_port`` as seen in the namespace ``to``.

    Namespaces are ``host`` or a site's name. A connection is accepted before the far end is tried; where nobody
    listens there, it is reset at once. So a probe has to read an answer: that a connection opens proves nothing.
    """

    name: str
    listen: str
    port: int
    to: str
    to_port: int
    to_host: str = "127.0.0.1"


def default_routes(api_port: int = API_PORT, node_port: int = NODE_PORT) -> tuple[Route, ...]:
    """Return the routes of the table above."""
    control = [
        Route(f"{site}-{name}", site, port, HOST, port)
        for site in DATA_PORTS
        for name, port in (("api", api_port), ("node", node_port))
    ]
    data = (
        Route("beta-to-alpha", "beta", DATA_PORTS["alpha"], "alpha", DATA_PORTS["alpha"]),
        Route("alpha-to-beta", "alpha", DATA_PORTS["beta"], "beta", DATA_PORTS["beta"]),
    )
    return (*control, *data)


class Relay:
    """The relay of the laboratory at ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "relay"
        self.log = self._folder / "relay.log"

    def processes(self) -> list[process.Process]:
        """Return the relay's process; more than one only by accident."""
        return list(process.find([_DAEMON, str(self._root)]))

    def start(self, routes: Sequence[Route]) -> bool:
        """Run with at least these ``routes``; one that is there under the same name is replaced. True if changed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        changed = self._write({**self._read(), **{one.name: one for one in routes}})
        if not self.processes():
            with self.log.open("ab") as output:
                daemon = subprocess.Popen(  # outlives us by design
                    [sys.executable, "-I", "-S", _DAEMON, str(self._root)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    start_new_session=True,
                )
            self._wait(daemon)
            changed = True
        elif changed:
            self._ask({"do": "reload"})
        return changed

    def _wait(self, daemon: subprocess.Popen[bytes]) -> None:
        # By its handle: right after exec a process has no arguments yet, so that it could not be found by them.
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.status()
            except Unavailable:
                if time.monotonic() > deadline or daemon.poll() is not None:
                    raise Permanent(
                        f"the relay did not start: {self.log.read_text(errors='replace')[-600:].strip()}",
                        code="relay-not-started",
                    ) from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> bool:
        """End the relay; True if it ran."""
        found = self.processes()
        process.end(found)
        return bool(found)

    def status(self) -> list[dict[str, Any]]:
        """Return each route with its state, whether it listens, its connections; ``Unavailable`` if it does not run."""
        return list(self._ask({"do": "status"})["routes"])

    def add(self, route: Route) -> bool:
        """Add or replace a route; False if it was there. ``Conflict`` if its port is taken on the machine."""
        known = self._read()
        changed = self._write({**known, route.name: route})
        routes = self._ask({"do": "reload"})["routes"]
        error = next(one["error"] for one in routes if one["name"] == route.name)
        if error and route.listen == HOST:
            self._write(known)
            self._ask({"do": "reload"})
            raise Conflict(
                f"port {route.port} on 127.0.0.1 cannot be used: {error}",
                code="port-taken",
                field="port",
                hint="Choose another port.",
            )
        return changed

    def remove(self, name: str) -> bool:
        """Remove a route and reset its connections; False if there is none."""
        routes = self._read()
        if routes.pop(name, None) is None:
            return False
        self._write(routes)
        self._ask({"do": "reload"})
        return True

    def set(self, name: str, state: State) -> None:
        """Let a route run (``open``), refuse and reset (``cut``), or fall silent with what is open (``stalled``)."""
        if name not in self._read():
            raise NotFound(f"the relay has no route {name}", field="name", known=sorted(self._read()))
        self._ask({"do": "set", "name": name, "state": state})

    def cut(self, name: str) -> None:
        """Reset the route's connections and refuse new ones."""
        self.set(name, "cut")

    def heal(self, name: str) -> None:
        """Undo :meth:`cut` or a stall."""
        self.set(name, "open")

    def _read(self) -> dict[str, Route]:
        try:
            listed = json.loads((self._folder / "routes.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {one["name"]: Route(**one) for one in listed}

    def _write(self, routes: dict[str, Route]) -> bool:
        if routes == self._read():
            return False
        durable.write_json(self._folder / "routes.json", [asdict(one) for one in routes.values()])
        return True

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(START_TIMEOUT_S)
                peer.connect(str(self._folder / "control"))
                with peer.makefile("rwb") as stream:
                    stream.write(json.dumps(order).encode() + b"\n")
                    stream.flush()
                    answer = stream.readline()
        except OSError as error:
            raise Unavailable(
                f"the relay does not answer: {error}", hint="Start it with: python -m farshore.testing.lab up"
            ) from error
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise Permanent(f"the relay refused: {reply['error']}", code="relay-refused")
        return reply
