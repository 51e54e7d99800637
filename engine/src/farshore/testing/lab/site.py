"""A private hypervisor site: libvirtd, networks and guests in mount, network and pid namespaces of their own.

Nothing of the machine's own libvirt is touched: the site has its own /run, /etc/libvirt, /var/lib/libvirt and users.
A site outlives the process that started it and ends with one signal: its process 1 (``siteinit.py``) is the root of
all that runs inside, so what survives a crash of anything is either the whole site or nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from farshore.errors import Invalid, Permanent, Unavailable
from farshore.testing.lab import command, process

TOOLS: Final = ("dnsmasq", "ip", "iptables", "libvirtd", "mount", "nsenter", "qemu-system-x86_64", "unshare")
START_TIMEOUT_S: Final = 60.0
# sockaddr_un holds 107 bytes; the longest name below a laboratory's root is <site>/guests/<guest>.serial.
MAX_ROOT_CHARACTERS: Final = 60

_INIT: Final = str(Path(__file__).parent / "siteinit.py")
_FILES: Final = Path(__file__).parent / "sitefiles"
# One daemon of root's, no security driver, no control groups, console logs written by qemu itself.
_QEMU_CONF: Final = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
_DAEMON_CONF: Final = """\
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
_USERS: Final = {
    "passwd": {
        "libvirt-qemu": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin",
        "dnsmasq": "dnsmasq:x:64056:65534::/:/usr/sbin/nologin",
    },
    "group": {"kvm": "kvm:x:64057:", "libvirt-qemu": "libvirt-qemu:x:64055:", "nogroup": "nogroup:x:65534:"},
}


def libvirt_module() -> Any:
    """Return the ``libvirt`` binding with its own printing of errors turned off."""
    try:
        import libvirt
    except ImportError as error:
        raise Permanent(
            "the Python binding of libvirt is not installed",
            code="missing-tool",
            hint="apt-get install libvirt-dev pkg-config gcc python3-dev, then pip install libvirt-python",
        ) from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


class Site:
    """One site below a laboratory's root; ``folder`` holds all of it."""

    def __init__(self, root: Path, name: str) -> None:
        if len(str(root)) > MAX_ROOT_CHARACTERS:
            raise Invalid(
                f"the path {root} is longer than {MAX_ROOT_CHARACTERS} characters, too long for the sockets in it",
                field="root",
                hint="Choose a shorter --root.",
            )
        self.name = name
        self.folder = root / name
        self.storage = self.folder / "storage"
        self.guests = self.folder / "guests"
        self.enter = self.folder / "enter"
        self.python = self.folder / "python"
        self.uri = f"qemu+unix:///system?socket={self.folder}/run/libvirt/libvirt-sock"

    def processes(self) -> list[process.Process]:
        """Return the site's process 1 and the ``unshare`` that waits for it; empty when the site does not run."""
        return list(process.find([_INIT, str(self.folder)]))

    def init(self) -> process.Process | None:
        """Return process 1 of the site as the machine sees it, or None."""
        return next((found for found in self.processes() if found.inner_pid == 1), None)

    def start(self, interpreter: Path | None = None, progress: Callable[[str], None] = lambda _line: None) -> bool:
        """Start the site unless it runs; True if something was done.

        Args:
            interpreter: what ``<folder>/python`` executes inside; this process's own by default.
            progress: gets lines for people.
        """
        command.require_root()
        command.require(TOOLS)
        libvirt = libvirt_module()
        changed = self._write_files(interpreter or Path(sys.executable))
        spawned: subprocess.Popen[bytes] | None = None
        if self.init() is None:
            progress(f"starting the private site {self.name}")
            process.end(self.processes())  # an unshare that has not come as far as process 1
            # Pid files and sockets of the life before: nothing in /run is meant to outlive it.
            shutil.rmtree(self.folder / "run")
            (self.folder / "run").mkdir()
            (self.folder / "init.pid").unlink(missing_ok=True)
            spawned = self._spawn()
            changed = True
        self._wait(libvirt, spawned)
        return changed

    def _write_files(self, interpreter: Path) -> bool:
        for name in ("run", "etc", "lib", "log", "cache", "storage", "guests"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        changed = False
        for name, text, mode in (
            ("etc/qemu.conf", _QEMU_CONF, 0o644),
            ("etc/libvirtd.conf", _DAEMON_CONF, 0o644),
            ("passwd", _with_users(Path("/etc/passwd"), _USERS["passwd"]), 0o644),
            ("group", _with_users(Path("/etc/group"), _USERS["group"]), 0o644),
            ("enter", (_FILES / "enter.sh").read_text(encoding="utf-8"), 0o755),
            ("python", (_FILES / "python.sh").read_text(encoding="utf-8"), 0o755),
        ):
            path = self.folder / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")  # in place: passwd and group are mounted inside
                path.chmod(mode)
                changed = True
        # A link, so that no path is ever pasted into a script.
        link = self.folder / "interpreter"
        if not link.is_symlink() or link.readlink() != interpreter:
            link.unlink(missing_ok=True)
            link.symlink_to(interpreter)
            changed = True
        return changed

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / "init.log").open("wb") as output:
            return subprocess.Popen(  # outlives us by design
                [
                    *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=KILL"),
                    *(sys.executable, "-I", "-S", _INIT, str(self.folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            )

    def _wait(self, libvirt: Any, spawned: subprocess.Popen[bytes] | None) -> None:
        # What we started we know by its handle: right after exec a process has no arguments yet to find it by.
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                libvirt.open(self.uri).close()
            except libvirt.libvirtError as error:
                gone = spawned.poll() is not None if spawned else not self.processes()
                if gone or time.monotonic() > deadline:
                    raise Permanent(
                        f"the private site {self.name} did not start: {self._said() or error}",
                        code="site-not-started",
                        hint="A container without CAP_SYS_ADMIN cannot make namespaces; see the logs in "
                        f"{self.folder}/log.",
                    ) from error
                time.sleep(0.02)
            else:
                return

    def _said(self) -> str:
        parts = [self.folder / "log" / name for name in ("init.log", "daemon.out", "libvirtd.log")]
        return "\n".join(path.read_text(errors="replace")[-600:].strip() for path in parts if path.exists()).strip()

    def connect(self) -> Any:
        """Return an open ``libvirt.virConnect``; the caller closes it. :class:`Unavailable` when the site is down."""
        libvirt = libvirt_module()
        try:
            return libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise Unavailable(
                f"libvirt of the site {self.name} does not answer: {error}",
                hint="Start the laboratory: python -m farshore.testing.lab up",
            ) from error

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """Yield an open connection, close it, and tell what libvirt refuses as :class:`Permanent` (``libvirt``)."""
        libvirt = libvirt_module()
        connection = self.connect()
        try:
            yield connection
        except libvirt.libvirtError as error:
            raise Permanent(
                f"libvirt of the site {self.name}: {error}",
                code="libvirt",
                hint=f"See the logs in {self.folder}/log",
                libvirt_code=error.get_error_code(),
            ) from error
        finally:
            connection.close()

    def argv(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the argument list that runs ``words`` inside the site."""
        return [str(self.enter), *(os.fspath(word) for word in words)]

    def run(self, *words: str | os.PathLike[str], timeout_s: float = 120) -> str:
        """Run ``words`` inside the site, return standard output; :class:`Permanent` with what it said on failure."""
        return command.run(self.argv(*words), timeout_s=timeout_s)

    def stop(self) -> bool:
        """End the site and everything in it, at once; True if there was something to end."""
        found = self.processes()
        # Process 1 first; unshare ends by itself, and kills process 1 should that be a moment from being born.
        process.end(sorted(found, key=lambda one: one.inner_pid))
        return bool(found)


def _with_users(path: Path, wanted: dict[str, str]) -> str:
    """Return the text of the user or group file at ``path`` with the ``wanted`` entries that it lacks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    known = {line.partition(":")[0] for line in lines}
    return "\n".join([*lines, *(entry for name, entry in wanted.items() if name not in known)]) + "\n"


def namespaces(folders: Sequence[Path]) -> list[str]:
    """Return the network namespaces recorded by the sites in ``folders`` that any process still holds."""
    recorded = {path.read_text().strip() for folder in folders if (path := folder / "netns").exists()}
    held = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            held.add(str(link.readlink()))
        except OSError:
            continue
    return sorted(recorded & held)
