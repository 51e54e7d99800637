"""What is run at a helper: one connection from within a drill's network. Standard library of Python 3.7, as root.

The interface in that network is put into a network namespace of its own. So nothing of the helper is to be seen from
there, nothing is ever passed on, and the network may have addresses that are in use elsewhere. Its only argument is
base64 of JSON; what it prints is one line of JSON.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
import zlib
from ctypes import CDLL, get_errno
from pathlib import Path
from typing import Any

#: Characters that Run Command hands back, less those of what is around the data.
ROOM = 23_000
_NAMESPACES = Path("/run/netns")
_LOCK = Path("/run/farshore-probing.lock")
_OURS = re.compile(r"fs-[0-9a-f]{8,17}")
_CONNECT_S = 3.0
_PROGRAM_S = 10
_NEW_NET = 0x40000000
_LINK = re.compile(r"^[0-9]+: ([^:@ ]+)[^\n]*link/ether ([0-9a-f:]{17})", re.MULTILINE)


class NotReadyError(Exception):
    """The interface cannot be used, or not yet."""


def main() -> None:
    """Do what the argument says."""
    wish = json.loads(base64.b64decode(sys.argv[1]).decode())
    found: dict[str, Any] = {"root": os.geteuid() == 0}
    try:
        run("ip", "-V")
        if "mac" in wish:
            enter(wish["namespace"], wish["mac"].lower(), wish["own"])
            found.update(exchange(wish))
    except (NotReadyError, OSError) as error:
        found["not_ready"] = str(error)
    sys.stdout.write(json.dumps(found) + "\n")


def enter(namespace: str, mac: str, own: str) -> None:
    """Go into the namespace that holds the interface with a hardware address; ``own``: its address, with a prefix."""
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = [place.name for place in _NAMESPACES.iterdir()] if _NAMESPACES.is_dir() else []
        for name in known:
            if _OURS.fullmatch(name) and name != namespace and not interfaces("-n", name):
                run("ip", "netns", "del", name)  # of a drill that is over
        here = interfaces().get(mac)
        if here is not None:
            if namespace not in known:
                run("ip", "netns", "add", namespace)
            run("ip", "link", "set", "dev", here, "netns", namespace)
        elif namespace not in known:
            raise NotReadyError(f"the interface {mac} is not to be seen")
        there = interfaces("-n", namespace).get(mac)
        if there is None:
            raise NotReadyError(f"the interface {mac} is gone")
        run("ip", "-n", namespace, "addr", "replace", own, "dev", there)
        run("ip", "-n", namespace, "link", "set", "dev", there, "up")
    with (_NAMESPACES / namespace).open() as place:
        if CDLL(None, use_errno=True).setns(place.fileno(), _NEW_NET):
            raise NotReadyError(f"the namespace cannot be entered: {os.strerror(get_errno())}")


def interfaces(*where: str) -> dict[str, str]:
    """Return the interfaces by their hardware addresses."""
    return {mac: name for name, mac in _LINK.findall(run("ip", "-o", *where, "link"))}


def run(*words: str) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(words, capture_output=True, timeout=_PROGRAM_S, check=False)
    if done.returncode:
        raise NotReadyError(f"{' '.join(words)}: {done.stderr.decode(errors='replace').strip()[:200]}")
    return done.stdout.decode(errors="replace")


def exchange(wish: dict[str, Any]) -> dict[str, Any]:
    """Connect, send, read; return what was read and how it ended."""
    deadline = time.monotonic() + wish["seconds"]
    until = base64.b64decode(wish["until"])
    seen = b""
    told: dict[str, Any] = {}
    try:
        with socket.create_connection((wish["address"], wish["port"]), min(_CONNECT_S, wish["seconds"])) as peer:
            peer.sendall(base64.b64decode(wish["send"]))
            while len(seen) < wish["limit"] and not (until and until in seen):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise socket.timeout("no answer in time")  # noqa: TRY301, UP041 - older Pythons have two of them
                peer.settimeout(left)
                data = peer.recv(65536)
                if not data:
                    break
                seen += data
    except socket.timeout as error:  # noqa: UP041
        told = {"errno": errno.ETIMEDOUT, "error": str(error)}
    except OSError as error:
        told = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
    return {**told, **packed(seen[: wish["limit"]])}


def packed(data: bytes) -> dict[str, Any]:
    """Return as much of the data as is handed back, packed."""
    kept = data
    while True:
        text = base64.b64encode(zlib.compress(kept, 9)).decode()
        if len(text) <= ROOM:
            return {"data": text, "missing": len(data) - len(kept)}
        kept = kept[: len(kept) * 3 // 4]


if __name__ == "__main__":
    main()
