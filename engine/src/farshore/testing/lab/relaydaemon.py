"""The relay's process: carries TCP between network namespaces without touching anybody's interfaces or routes.

A socket belongs to the network namespace in which its thread was when it made it. So this one process, outside of all
sites, listens inside one namespace and connects inside another, and copies bytes in between. Standard library only.

Usage: relaydaemon.py ROOT      (``ROOT/relay/routes.json`` says what to carry, ``ROOT/relay/control`` takes orders)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HOST: Final = "host"
TICK_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 5.0
# A pipe holds at most fs.pipe-max-size, 1 MiB on an ordinary kernel.
PIPE_BYTES: Final = 1 << 20
CLONE_NEWNET: Final = 0x40000000
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s

_libc = ctypes.CDLL(None, use_errno=True)


def log(line: str) -> None:
    """Write one line to standard error, which is the log."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Namespaces:
    """Open handles of the namespaces by name; a site that ended or began anew is noticed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._open: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def identity(self, name: str) -> str | None:
        """Return what tells this life of the namespace from the next, None while there is none."""
        if name == HOST:
            return HOST
        try:
            text = (self._root / name / "init.pid").read_text(encoding="ascii")
            pid, started = text.split()
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return text if fields[19] == started and fields[0] not in {"Z", "X"} else None

    def _handle(self, name: str) -> int:
        """Return an open handle; OSError while the site does not run. Call it with the lock held."""
        if name == HOST:
            return self._host
        identity = self.identity(name)
        kept = self._open.get(name)
        if kept and kept[0] == identity:
            return kept[1]
        if kept:
            os.close(self._open.pop(name)[1])
        if identity is None:
            raise OSError(f"the site {name} does not run")
        fd = os.open(f"/proc/{identity.split()[0]}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._open[name] = (identity, fd)
        return fd

    def forget(self, name: str) -> None:
        """Let go of a namespace that ended: an open handle would keep it alive."""
        with self._lock:
            kept = self._open.pop(name, None)
        if kept:
            os.close(kept[1])

    @contextlib.contextmanager
    def entered(self, name: str) -> Iterator[None]:
        """Be inside, for the calling thread alone."""
        with self._lock:  # else the handle could be closed, and its number be another's, before it is used
            _setns(self._handle(name))
        try:
            yield
        finally:
            _setns(self._host)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Link:
    """One accepted connection and its partner in the other namespace, a thread for each direction."""

    def __init__(self, near: socket.socket, far: socket.socket, flow: threading.Event) -> None:
        self._sockets = (near, far)
        self._flow = flow
        self._lock = threading.Lock()
        self._open_directions = 2
        self.moved_bytes = 0
        self.ended = False

    def run(self) -> None:
        """Carry both directions until both have ended."""
        near, far = self._sockets
        for one in self._sockets:
            one.settimeout(None)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other = threading.Thread(target=self._carry, args=(far, near), daemon=True)
        other.start()
        self._carry(near, far)
        other.join()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        outlet, inlet = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            while count := os.splice(source.fileno(), inlet, PIPE_BYTES):
                while not self._flow.wait(TICK_S):
                    if self.ended:
                        return
                self.moved_bytes += count
                while count:
                    count -= os.splice(outlet, sink.fileno(), count)
            sink.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):
            self.abort()
        finally:
            os.close(outlet)
            os.close(inlet)
            with self._lock:
                self._open_directions -= 1
                last = self._open_directions == 0
            if last:
                self.ended = True
                for one in self._sockets:
                    one.close()

    def abort(self) -> None:
        """Reset both ends. The sockets are closed by the threads that use them."""
        self.ended = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                one.shutdown(socket.SHUT_RDWR)


@dataclass
class Route:
    """One route and what is open of it."""

    name: str
    listen: str
    port: int
    to: str
    to_host: str
    to_port: int
    state: str = "open"  # open, cut (refused and reset) or stalled (silent)
    error: str = ""
    listener: socket.socket | None = None
    identities: tuple[str | None, str | None] = (None, None)
    links: set[Link] = field(default_factory=set)
    flow: threading.Event = field(default_factory=threading.Event)
    complained: bool = False
    moved_bytes: int = 0  # over connections that have ended

    def definition(self) -> tuple[str, int, str, str, int]:
        """Return what, if changed, makes it another route."""
        return (self.listen, self.port, self.to, self.to_host, self.to_port)


class Relay:
    """All routes, kept in step with the sites. Only the main thread touches listeners and the table of routes."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "relay"
        self._namespaces = Namespaces(root)
        self._routes: dict[str, Route] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Serve for ever."""
        path = self._folder / "control"
        path.unlink(missing_ok=True)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._load()
        self._keep()
        control.bind(str(path))
        control.listen(16)
        self._selector.register(control, selectors.EVENT_READ, None)
        while True:
            for key, _events in self._selector.select(TICK_S):
                if key.data is None:
                    self._order(control)
                else:
                    self._accept(key.data)
            self._keep()

    def _load(self) -> None:
        try:
            wanted = json.loads((self._folder / "routes.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            wanted = []
        fresh = {one["name"]: Route(**one) for one in wanted}
        for name, route in list(self._routes.items()):
            if name not in fresh or fresh[name].definition() != route.definition():
                self._close(route)
                del self._routes[name]
        for name, route in fresh.items():
            if name not in self._routes:
                route.flow.set()
                self._routes[name] = route

    def _keep(self) -> None:
        """Close what belongs to a namespace that ended, open what can be opened."""
        names = {name for route in self._routes.values() for name in (route.listen, route.to)}
        now = {name: self._namespaces.identity(name) for name in names}
        for route in self._routes.values():
            identities = (now[route.listen], now[route.to])
            if route.identities != identities:
                listener_lives = route.identities[0] == identities[0]
                self._close(route, keep_listener=listener_lives)
                route.identities = identities
            if route.listener is None and route.state != "cut" and identities[0] is not None:
                self._open(route)
        for name, identity in now.items():
            if identity is None:
                self._namespaces.forget(name)

    def _open(self, route: Route) -> None:
        listener: socket.socket | None = None
        try:
            with self._namespaces.entered(route.listen):
                listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", route.port))
            listener.listen(128)
        except OSError as error:
            if listener is not None:
                listener.close()
            if route.error != str(error):
                log(f"{route.name}: cannot listen on port {route.port} in {route.listen}: {error}")
            route.error = str(error)
            return
        listener.setblocking(False)
        route.error = ""
        route.listener = listener
        if route.state == "open":
            self._selector.register(listener, selectors.EVENT_READ, route)
        log(f"{route.name}: listening on port {route.port} in {route.listen}")

    def _close(self, route: Route, *, keep_listener: bool = False) -> None:
        if route.listener is not None and not keep_listener:
            with contextlib.suppress(KeyError):
                self._selector.unregister(route.listener)
            route.listener.close()
            route.listener = None
        with self._lock:
            links = list(route.links)
        for link in links:
            link.abort()

    def _accept(self, route: Route) -> None:
        if route.listener is None or route.state != "open":
            return
        try:
            near, _address = route.listener.accept()
        except OSError:
            return
        threading.Thread(target=self._serve, args=(route, near), daemon=True).start()

    def _serve(self, route: Route, near: socket.socket) -> None:
        far: socket.socket | None = None
        try:
            with self._namespaces.entered(route.to):
                far = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            far.settimeout(CONNECT_TIMEOUT_S)
            far.connect((route.to_host, route.to_port))
        except OSError as error:
            if not route.complained:
                log(f"{route.name}: {route.to} {route.to_host}:{route.to_port}: {error}")
            route.complained = True
            with contextlib.suppress(OSError):
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            near.close()
            if far is not None:
                far.close()
            return
        route.complained = False
        link = Link(near, far, route.flow)
        with self._lock:
            route.links.add(link)
        if route.state == "cut" or self._routes.get(route.name) is not route:
            link.abort()
        link.run()
        with self._lock:
            route.links.discard(link)
            route.moved_bytes += link.moved_bytes

    def _order(self, control: socket.socket) -> None:
        peer, _address = control.accept()
        with peer, peer.makefile("rwb") as stream:
            peer.settimeout(CONNECT_TIMEOUT_S)
            try:
                answer = self._obey(json.loads(stream.readline(1 << 16)))
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"error": repr(error)}
            with contextlib.suppress(OSError):
                stream.write(json.dumps(answer).encode() + b"\n")

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "reload":
                self._load()
                self._keep()
            case "set":
                self._set(self._routes[order["name"]], order["state"])
            case "status":
                pass
            case unknown:
                return {"error": f"unknown order {unknown}"}
        return {"routes": [self._describe(route) for route in self._routes.values()]}

    def _set(self, route: Route, state: str) -> None:
        route.state = state
        if state == "cut":
            self._close(route)
            return
        if state == "stalled":
            route.flow.clear()
            if route.listener is not None:  # the kernel still takes connections; nobody answers them
                with contextlib.suppress(KeyError):
                    self._selector.unregister(route.listener)
            return
        route.flow.set()
        if route.listener is not None and route.listener not in self._selector.get_map():
            self._selector.register(route.listener, selectors.EVENT_READ, route)
        self._keep()

    def _describe(self, route: Route) -> dict[str, Any]:
        with self._lock:
            links, ended = list(route.links), route.moved_bytes
        return {
            "name": route.name,
            "listen": route.listen,
            "port": route.port,
            "to": route.to,
            "to_host": route.to_host,
            "to_port": route.to_port,
            "state": route.state,
            "listening": route.listener is not None,
            "connections": len(links),
            "moved_bytes": ended + sum(link.moved_bytes for link in links),
            "error": route.error,
        }


if __name__ == "__main__":
    Relay(Path(sys.argv[1])).run()
