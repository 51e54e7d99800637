"""Gives the instances of AWS's double their guests: what runs there is booted in QEMU from the bytes of its volumes.

An instance's address is one of the loopback's, so that probes reach the guest's ports without a network of its own.
While a guest shuts down its instance is held in ``stopping``: what is read of its volumes once it is ``stopped`` is all
that the guest has written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from doubles.aws import AwsDouble
from doubles.aws.sparse import copy

_POLL_S: Final = 0.2
_PORTS: Final = (8080,)
_BOOT_SIGNATURE: Final = b"\x55\xaa"


class Guest:
    """One instance's QEMU."""

    def __init__(self, folder: Path, instance: Mapping[str, Any], disks: Sequence[Path], accelerator: str) -> None:
        self.name = str(instance["InstanceId"])
        self.console = folder / f"{self.name}.console"
        self._qmp = folder / f"{self.name}.qmp"
        address = instance["PrivateIpAddress"]
        forwards = "".join(f",hostfwd=tcp:{address}:{port}-:{port}" for port in _PORTS)
        argv = ["qemu-system-x86_64", "-name", self.name, "-machine", f"pc,accel={accelerator}", "-cpu", "max"]
        argv += ["-m", "256", "-display", "none", "-no-reboot", "-nodefaults", "-vga", "std"]
        argv += ["-serial", f"file:{self.console}", "-qmp", f"unix:{self._qmp},server=on,wait=off"]
        argv += ["-netdev", f"user,id=net0{forwards}", "-device", "virtio-net-pci,netdev=net0"]
        for index, disk in enumerate(disks):
            argv += ["-drive", f"file={disk},format=raw,if=none,id=disk{index},cache=writeback"]
            argv += ["-device", f"virtio-blk-pci,drive=disk{index},bootindex={index + 1}"]
        with (folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def press(self) -> None:
        """Press the power button."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(10)
            peer.connect(str(self._qmp))
            with peer.makefile("rwb") as stream:
                stream.readline()
                for command in ("qmp_capabilities", "system_powerdown"):
                    stream.write(json.dumps({"execute": command}).encode() + b"\n")
                    stream.flush()
                    stream.readline()

    def end(self) -> None:
        """Cut its power."""
        if self.is_on:
            self.process.kill()
        self.process.wait()


class AwsGuests:
    """``with AwsGuests(aws, folder):`` looks at the double's instances and lets their guests run and stop with them."""

    def __init__(self, aws: AwsDouble, folder: Path, accelerator: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._aws = aws
        self._folder = folder
        self._accelerator = accelerator
        self._guests: dict[str, Guest] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aws-guests", daemon=True)
        self.failure: BaseException | None = None
        self.booted: list[str] = []
        #: What volumes held when their instance was first switched on, by its id.
        self.launched: dict[str, list[Path]] = {}

    def __enter__(self) -> Self:
        assert shutil.which("qemu-system-x86_64")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for guest in self._guests.values():
            guest.end()

    def console(self, instance_id: str) -> str:
        """Return what a guest has said on its serial port."""
        path = self._folder / f"{instance_id}.console"
        return path.read_text(errors="replace") if path.exists() else ""

    def _run(self) -> None:
        try:
            while not self._done.wait(_POLL_S):
                self._look()
        except BaseException as error:  # noqa: BLE001 - whoever waits for a guest sees it
            self.failure = error

    def _look(self) -> None:
        found = self._aws.client("ec2", attempts=3).describe_instances()
        for instance in (one for reservation in found["Reservations"] for one in reservation["Instances"]):
            name, state = instance["InstanceId"], instance["State"]["Name"]
            guest = self._guests.get(name)
            if guest is not None and not guest.is_on:
                self._guests.pop(name)
                self._aws.hold(name, held=False)
                assert state != "running", f"the guest of {name} went off by itself: {self.console(name)[-2000:]}"
            elif guest is not None and state == "stopping":
                guest.press()
            elif guest is not None and state in {"stopped", "shutting-down", "terminated"}:
                guest.end()
            elif guest is None and state == "running" and (disks := self._disks(instance)):
                self._aws.hold(name)
                if name not in self.launched:
                    self.launched[name] = [self._folder / f"{name}-{at}.raw" for at in range(len(disks))]
                    for disk, kept in zip(disks, self.launched[name], strict=True):
                        with kept.open("wb") as image:
                            image.truncate(disk.stat().st_size)
                        copy(disk, kept)
                self._guests[name] = Guest(self._folder, instance, disks, self._accelerator)
                self.booted.append(name)

    def _disks(self, instance: Mapping[str, Any]) -> list[Path]:
        """Return the volumes, the root first; nothing for an instance that has nothing to boot."""
        root = instance.get("RootDeviceName")
        mapped = [one for one in instance.get("BlockDeviceMappings") or () if "Ebs" in one]
        mapped.sort(key=lambda one: (one["DeviceName"] != root, one["DeviceName"]))
        disks = [self._aws.volume(one["Ebs"]["VolumeId"]) for one in mapped]
        if not disks:
            return []
        with disks[0].open("rb") as image:
            head = image.read(512)
        return disks if head.endswith(_BOOT_SIGNATURE) else []
