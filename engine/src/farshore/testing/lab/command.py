"""Running the machine's own tools: argv lists, clear errors, and what to install when one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from farshore.errors import Permanent

PACKAGES: Final[dict[str, str]] = {
    "busybox": "busybox-static",
    "dnsmasq": "dnsmasq-base",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "iptables": "iptables",
    "libvirtd": "libvirt-daemon",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mmd": "mtools",
    "mount": "mount",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "syslinux": "syslinux",
    "unshare": "util-linux",
}
"""Debian package of each tool that the laboratory runs."""

QEMU_DRIVER: Final = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")
MASTER_BOOT_RECORD: Final = Path("/usr/lib/syslinux/mbr/mbr.bin")
_FILES: Final = {QEMU_DRIVER: "libvirt-daemon-driver-qemu", MASTER_BOOT_RECORD: "syslinux-common"}


def which(tool: str) -> str | None:
    """Return the path of ``tool``; system folders are searched although an ordinary PATH may lack them."""
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")


def require(tools: Iterable[str]) -> None:
    """Raise :class:`Permanent` (``missing-tool``) that names every package to install."""
    missing = {PACKAGES[tool] for tool in tools if which(tool) is None}
    missing |= {package for path, package in _FILES.items() if not path.exists()}
    if missing:
        names = " ".join(sorted(missing))
        raise Permanent(
            f"the laboratory needs {names}",
            code="missing-tool",
            hint=f"As root: apt-get install --no-install-recommends {names}",
            packages=sorted(missing),
        )


def require_root() -> None:
    """Raise :class:`Permanent` (``not-root``) unless namespaces and bridges can be made here."""
    if os.geteuid() != 0:
        raise Permanent(
            "the laboratory makes namespaces and bridges and must run as root",
            code="not-root",
            hint="Run the same command with sudo.",
        )


def run(
    argv: Sequence[str | Path], *, timeout_s: float = 120, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """Run ``argv`` and return its standard output; :class:`Permanent` (``command-failed``) with what it said."""
    words = [str(word) for word in argv]
    words[0] = which(words[0]) or words[0]
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd, env=environment
        )
    except FileNotFoundError as error:
        package = PACKAGES.get(str(argv[0]), str(argv[0]))
        raise Permanent(
            f"{argv[0]} is not installed", code="missing-tool", hint=f"As root: apt-get install {package}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Permanent(
            f"{Path(words[0]).name} did not end within {timeout_s:.0f} s", code="command-failed", argv=words
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise Permanent(
            f"{Path(words[0]).name} failed with status {done.returncode}: {said}", code="command-failed", argv=words
        )
    return done.stdout
