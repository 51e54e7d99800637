"""The process between a node and a hook: begins it as its user, and ends all that it has begun. Standard library only.

The first line of standard input is the order, as JSON. The end of standard input, also by the death of the node, means:
kill. Whatever the hook starts stays below this process (it is a subreaper), also what a daemon does with a double fork.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def main() -> int:
    """Carry out one order and return the hook's status."""
    order = json.loads(sys.stdin.buffer.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")

    def prepare() -> None:
        # Set-user-id programs get nothing: what runs here can always be killed, and stays who it is.
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            os._exit(126)
        for name, value in order["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))

    identity = {}
    if order["uid"] is not None:
        identity = {"user": order["uid"], "group": order["gid"], "extra_groups": []}
    # Popen calls prepare() after it has become the other user, just before it executes.
    child = subprocess.Popen(
        order["argv"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=order["env"],
        cwd=order["cwd"],
        umask=0o077,
        start_new_session=True,
        pass_fds=(order["result_fd"],),
        preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
        **identity,
    )
    os.close(order["result_fd"])
    watched = os.pidfd_open(child.pid)
    ready, _, _ = select.select([watched, sys.stdin.fileno()], [], [])
    status = child.wait() if watched in ready else 128 + signal.SIGKILL
    _kill_all()
    return status if status >= 0 else 128 - status


def _kill_all() -> None:
    """Kill all descendants until there is none."""
    while True:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _descendants() -> list[int]:
    """Return the processes below this one."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            # The second field is the program's name in brackets, which may hold anything.
            parent = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(process.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main())
