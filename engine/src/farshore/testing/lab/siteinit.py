"""Process 1 of a private site; run by ``unshare`` in new mount, network and pid namespaces. Standard library only.

Gives the site its own folders for libvirt, starts libvirtd and keeps it alive, reaps every orphan (a qemu that nobody
reaped looks alive to libvirt) and takes everything inside with it when it dies: the kernel ends a pid namespace whose
process 1 is gone, and with the last process go the interfaces, bridges, rules and mounts.

Usage: siteinit.py FOLDER
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

# Compiled into libvirt, so its own options cannot move them: they are mounted over. All of /run, because iptables keeps
# its lock there too, and two sites must not wait for each other.
BINDS: Final = {
    "/run": "run",
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/log/libvirt": "log",
    "/var/cache/libvirt": "cache",
}
FIRST_PAUSE_S: Final = 0.2
LAST_PAUSE_S: Final = 5.0


def mount(*words: str) -> None:
    """Pass ``words`` to the mount tool."""
    subprocess.run(["mount", *words], check=True, stdin=subprocess.DEVNULL)


def record(folder: Path) -> None:
    """Write ``init.pid`` (pid as the machine sees it, start time) and ``netns``, both by rename."""
    # The /proc that we inherited belongs to the machine's pid namespace, so its "self" is our pid out there.
    pid = str(Path("/proc/self").readlink())
    started = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
    for name, text in (("netns", str(Path("/proc/self/ns/net").readlink())), ("init.pid", f"{pid} {started}")):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text + "\n", encoding="ascii")
        temporary.replace(folder / name)


def prepare(folder: Path) -> None:
    """Make the mounts and raise the loopback interface."""
    record(folder)
    mount("--make-rprivate", "/")
    mount("-t", "proc", "proc", "/proc")
    # The bridge code reads and writes /sys/class/net, which shows the network namespace of whoever mounted it.
    mount("-t", "sysfs", "sysfs", "/sys")
    for place, own in BINDS.items():
        Path(place).mkdir(parents=True, exist_ok=True)
        mount("--bind", str(folder / own), place)
    for name in ("passwd", "group"):
        mount("--bind", str(folder / name), f"/etc/{name}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, stdin=subprocess.DEVNULL)


def start_daemon(folder: Path) -> int:
    """Start libvirtd; return its pid."""
    with (folder / "log" / "daemon.out").open("ab") as output:
        daemon = subprocess.Popen(
            ["libvirtd", "--config", str(folder / "etc" / "libvirtd.conf")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
        )
    daemon.returncode = 0  # reaped below, by pid, like everything else
    return daemon.pid


def leave(_number: int, _frame: FrameType | None) -> None:
    """End at once; the kernel ends the rest."""
    os._exit(0)


def main() -> None:
    """Prepare, then reap for ever."""
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, leave)
    prepare(folder)
    pause_s = FIRST_PAUSE_S
    started = time.monotonic()
    daemon = start_daemon(folder)
    while True:
        pid, _status = os.waitpid(-1, 0)
        if pid == daemon:
            # A daemon that lived for a while comes back at once; one that cannot start is not tried in a busy loop.
            pause_s = FIRST_PAUSE_S if time.monotonic() - started > LAST_PAUSE_S else min(2 * pause_s, LAST_PAUSE_S)
            time.sleep(pause_s)
            started = time.monotonic()
            daemon = start_daemon(folder)


if __name__ == "__main__":
    main()
