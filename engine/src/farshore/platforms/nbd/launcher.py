"""Starts and stops ``qemu-storage-daemon`` processes, and finds those of an earlier life.

Each daemon has a folder named after its key. It outlives us on purpose (a node that is killed must not take a guest's
view of a disk with it) and is found again by its own command line: the pid file's path in it is unique, so neither a
reused pid nor a pid file that was never written can mislead.

A daemon that was started and never recorded does not exist: the folder and its ``key`` file are durable first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from farshore import durable
from farshore.errors import Conflict, FarshoreError, Invalid, NoSpace, Permanent, Reconnect, Retry, Unavailable
from farshore.platforms.nbd.client import Connection
from farshore.platforms.nbd.qmp import Monitor

TOOL: Final = "qemu-storage-daemon"
#: ``sun_path`` of unix(7) is 108 bytes with its final NUL.
SOCKET_PATH_BYTES: Final = 107
START_S: Final = 30.0
#: A daemon flushes its images when it is asked to end; slow disks take a while.
STOP_S: Final = 60.0
_POLL_S: Final = 0.01


class Exported(Protocol):
    """How a block node is shown to others."""

    def options(self) -> dict[str, Any]:
        """Return the argument of ``--export`` (QEMU, qapi/block-export.json)."""


@dataclass(frozen=True, slots=True)
class Export:
    """A block node to be exported over NBD. ``bitmaps``: dirty bitmaps of the node that clients may ask for."""

    node: str
    name: str
    writable: bool = False
    bitmaps: tuple[str, ...] = ()
    depth: bool = False

    def options(self) -> dict[str, Any]:
        """Return the argument of ``--export`` (QEMU, qapi/block-export.json)."""
        options: dict[str, Any] = {
            "type": "nbd",
            "id": f"export-{self.name}",
            "node-name": self.node,
            "name": self.name,
            "writable": self.writable,
        }
        if self.bitmaps:
            options["bitmaps"] = list(self.bitmaps)
        if self.depth:
            options["allocation-depth"] = True
        return options


@dataclass(frozen=True, slots=True)
class StorageDaemon:
    """A daemon that runs, or ran."""

    key: str
    folder: Path

    @property
    def nbd_path(self) -> Path:
        """The Unix socket of its exports."""
        return self.folder / "n"

    def connect(self, export: str, contexts: Sequence[str] = ()) -> Connection:
        """Open a connection to one of its exports."""
        return Connection(self.nbd_path, export, contexts)

    def monitor(self) -> Monitor:
        """Open its monitor."""
        return Monitor(self.folder / "q")

    def pid(self) -> int | None:
        """Return its process id if it lives."""
        marker = os.fsencode(self.folder / "pid")
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "pid").read_text())
            if marker in _arguments(pid):
                return pid
        return next((pid for pid in _processes() if marker in _arguments(pid)), None)

    def log(self) -> str:
        """Return the end of what it said."""
        try:
            return (self.folder / "log").read_text(errors="replace").strip()[-2000:]
        except OSError:
            return ""


class Launcher:
    """Daemons below one folder.

    Raises:
        Invalid: the folder's name is too long for the sockets below it.
    """

    def __init__(self, folder: Path, field: str = "platform.scratch") -> None:
        check_socket_path(folder / ("x" * 12) / "n", field)
        self._folder = folder
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        durable.make_dir(folder)

    def _daemon(self, key: str) -> StorageDaemon:
        return StorageDaemon(key, self._folder / hashlib.sha256(key.encode()).hexdigest()[:12])

    def start(self, key: str, nodes: Sequence[dict[str, Any]], exports: Sequence[Exported]) -> StorageDaemon:
        """Start a daemon that opens ``nodes`` (``blockdev-add`` arguments) and exports some of them.

        One of an earlier life with the same key is ended first.

        Raises:
            Conflict: an image is held by another process (``image-in-use``).
            NoSpace, Permanent: it did not start.
        """
        self.stop(key)
        daemon = self._daemon(key)
        durable.make_dir(daemon.folder)
        durable.write(daemon.folder / "key", key.encode())
        argv = [TOOL, "--pidfile", str(daemon.folder / "pid")]
        monitor = str(daemon.folder / "q").replace(",", ",,")
        argv += ["--chardev", f"socket,id=monitor,server=on,wait=off,path={monitor}", "--monitor", "chardev=monitor"]
        for node in nodes:
            argv += ["--blockdev", json.dumps(node)]
        options = [export.options() for export in exports]
        if any(item["type"] == "nbd" for item in options):
            argv += ["--nbd-server", json.dumps({"addr": {"type": "unix", "path": str(daemon.nbd_path)}})]
        for item in options:
            argv += ["--export", json.dumps(item)]
        try:
            with (daemon.folder / "log").open("wb") as log:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={**os.environ, "LC_ALL": "C"},
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise Permanent(
                f"{TOOL} is not installed", code="missing-tool", hint="As root: apt-get install qemu-system-common"
            ) from error
        with self._lock:
            self._children[daemon.folder] = child
        try:
            _wait_ready(daemon, child)
        except BaseException:
            self.stop(key)
            raise
        return daemon

    def find(self, key: str) -> StorageDaemon | None:
        """Return the daemon called ``key`` if it lives."""
        daemon = self._daemon(key)
        return daemon if daemon.pid() else None

    def keys(self) -> Iterator[str]:
        """Yield the keys of all daemons that were not stopped, alive or not."""
        for path in sorted(self._folder.glob("*/key")):
            with contextlib.suppress(OSError):
                yield path.read_text()

    def stop(self, key: str) -> None:
        """End the daemon called ``key``, its images closed in order, and forget it; nothing to do if it is gone.

        Raises:
            Retry: it does not end.
        """
        daemon = self._daemon(key)
        pid = daemon.pid()
        if pid:
            for number, limit_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                if self._wait_gone(daemon, limit_s):
                    break
            else:
                raise Retry(f"storage daemon {pid} does not end", code="daemon-hangs", pid=pid)
        self._reap(daemon, block=True)
        shutil.rmtree(daemon.folder, ignore_errors=True)

    def _wait_gone(self, daemon: StorageDaemon, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            self._reap(daemon, block=False)
            if daemon.pid() is None:
                return True
            time.sleep(_POLL_S)
        return False

    def _reap(self, daemon: StorageDaemon, *, block: bool) -> None:
        with self._lock:
            child = self._children.get(daemon.folder)
        if child and (child.poll() is not None or block):
            child.wait()
            with self._lock:
                self._children.pop(daemon.folder, None)


def check_socket_path(path: Path, field: str) -> None:
    """Raise :class:`Invalid` if ``path`` is too long for a Unix socket."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise Invalid(
            f"{path} is longer than {SOCKET_PATH_BYTES} bytes, the limit of a Unix socket's name",
            field=field,
            hint="Choose a folder with a shorter path.",
        )


def _wait_ready(daemon: StorageDaemon, child: subprocess.Popen[bytes]) -> None:
    """Return when the monitor answers, which is after all images are open and exported."""
    deadline = time.monotonic() + START_S
    while True:
        # It listens before it opens its images, and resets the connection when one of them fails.
        with contextlib.suppress(Unavailable, Reconnect):
            daemon.monitor().close()
            return
        if (ended := child.poll()) is not None:
            if ended < 0:
                name = signal.Signals(-ended).name
                raise Retry(f"{TOOL} was ended by {name} while it started", code="daemon-killed", log=daemon.log())
            raise failure(f"{TOOL} did not start", daemon.log())
        if time.monotonic() > deadline:
            raise Retry(f"{TOOL} was not ready after {START_S:.0f} s", code="daemon-hangs", log=daemon.log())
        time.sleep(_POLL_S)


def failure(what: str, said: str) -> FarshoreError:
    """Return the error for a QEMU tool that failed and ``said`` why (its only way to tell is English text)."""
    if "No space left on device" in said:
        return NoSpace(f"{what}: {said}", hint="Make room in the pool, then run it again.")
    if 'Failed to get "' in said or "Is another process using the image" in said:
        return Conflict(f"{what}: the image is in use: {said}", code="image-in-use")
    if "No such file or directory" in said:
        return Permanent(f"{what}: {said}", code="image-missing")
    return Permanent(f"{what}: {said}", code="qemu-tool")


def _processes() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            yield int(entry.name)


def _arguments(pid: int) -> list[bytes]:
    """Return the command line of a process; empty if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
