"""What libvirt keeps beside machines and networks, and should not when they are gone: leases, sockets, processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from farshore.platforms.kvm import isolation
from farshore.platforms.kvm.networks import bridge_of

#: Where a hypervisor of this machine keeps them; one that is elsewhere has none here.
STATE: Final = Path("/run/libvirt/network")
LEASES: Final = (Path("/var/lib/libvirt/dnsmasq"), STATE)
CHANNELS: Final = (Path("/var/lib/libvirt/qemu"), Path("/run/libvirt/qemu"))
PATIENCE_S: Final = 10.0
_POLL_S: Final = 0.1
#: Process names are short; what a process works on is in its arguments.
_PROCESSES: Final = ("qemu-system", "qemu-kvm", "dnsmasq", "qemu-storage-d", "qemu-nbd")


def left(machines: Collection[str], networks: Collection[str], folder: Path) -> list[str]:
    """Return what is left of machines and networks by their names, and of processes at work in ``folder``.

    Processes that were told to end are given a moment.
    """
    deadline = time.monotonic() + PATIENCE_S
    while (found := _look(machines, networks, folder)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found


def tidy(networks: Collection[str]) -> None:
    """Remove what libvirt forgets to (seen with 9.0): the note of a process that it has ended, empty folders."""
    for name in networks:
        with contextlib.suppress(OSError):
            (STATE / f"{name}.pid").unlink()
        for folder in (STATE / name / "ports", STATE / name):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _look(machines: Collection[str], networks: Collection[str], folder: Path) -> list[str]:
    return [
        *(f"link {link}" for name in networks for link in isolation.leftovers(bridge_of(name))),
        *(f"lease file {path}" for name in networks for path in _leases(name)),
        *(f"socket {path}" for name in machines for path in _sockets(name)),
        *_processes([str(folder), *networks]),
    ]


def _leases(network: str) -> Iterator[Path]:
    stems = {network, bridge_of(network)}
    for folder in LEASES:
        with contextlib.suppress(OSError):
            yield from (path for path in sorted(folder.iterdir()) if path.name.partition(".")[0] in stems)


def _sockets(machine: str) -> Iterator[Path]:
    # domain-<number>-<name>, the name cut to 20 characters: libvirt's virDomainDefGetShortName.
    for base in CHANNELS:
        for pattern in (
            f"domain-*-{machine[:20]}",
            f"channel/target/domain-*-{machine[:20]}",
            f"channel/*-{machine[:20]}",
        ):
            with contextlib.suppress(OSError):
                yield from sorted(base.glob(pattern))


def _processes(marks: list[str]) -> Iterator[str]:
    """Yield the hypervisor's processes whose arguments name one of ``marks``."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            program = Path(words[0]).name
            if program.startswith(_PROCESSES) and any(mark in word for mark in marks for word in words):
                yield f"process {program} {path.parent.name}"
