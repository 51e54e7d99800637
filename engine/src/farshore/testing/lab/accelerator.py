"""Which accelerator runs guests here: KVM only after a guest has proved it.

That /dev/kvm opens, or that qemu starts with it, proves nothing: on a machine that is itself a guest of some
hypervisors an ordinary kernel never reaches its first instruction of user space. So a guest is booted, once for each
machine and image, and has to print its marker.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from farshore import durable
from farshore.testing.lab import command
from farshore.testing.lab.guest import Image, locked

Accelerator = Literal["tcg", "kvm"]
KVM: Final = Path("/dev/kvm")
# Under a KVM that works the marker comes in 2 to 3 s, even on a busy machine in less than 10.
PROBE_TIMEOUT_S: Final = 15


def accelerator(cache: Path, image: Image, progress: Callable[[str], None] = lambda _line: None) -> Accelerator:
    """Return what to run guests with; the answer is kept in ``<cache>/accelerator.json`` for this kernel and image.

    ``FARSHORE_LAB_ACCELERATOR=tcg`` or ``kvm`` in the environment decides without a probe.
    """
    forced = os.environ.get("FARSHORE_LAB_ACCELERATOR")
    if forced in {"tcg", "kvm"}:
        return "kvm" if forced == "kvm" else "tcg"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"
    key = f"{platform.release()} {image.key}"
    store = cache / "accelerator.json"
    try:
        kept = json.loads(store.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        kept = {}
    if kept.get("key") == key and kept.get("accelerator") in {"tcg", "kvm"}:
        return "kvm" if kept["accelerator"] == "kvm" else "tcg"
    progress(f"trying whether KVM runs a guest here (at most {PROBE_TIMEOUT_S} s, once)")
    with locked(cache):
        answer: Accelerator = "kvm" if _boots(image) else "tcg"
    progress("KVM works" if answer == "kvm" else "KVM does not run a guest here: emulating (TCG), which is slower")
    durable.write_json(store, {"key": key, "accelerator": answer})
    return answer


def _boots(image: Image) -> bool:
    """Tell whether the web guest prints its marker in time under KVM; its disk is opened with a throw-away overlay."""
    with tempfile.TemporaryDirectory(prefix="probe-", suffix=".building", dir=image.data.parent.parent) as folder:
        console = Path(folder) / "console.log"
        argv = [
            # Limits itself, should we be killed: a guest that spins would do so for ever.
            *("timeout", "--signal=KILL", str(PROBE_TIMEOUT_S + 1), str(command.which("qemu-system-x86_64"))),
            *("-name", "farshore-lab-probe", "-M", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256"),
            *("-nodefaults", "-display", "none", "-snapshot"),
            *("-drive", f"file={image.system['web']},format=qcow2,if=virtio"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        ]
        probe = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            deadline = time.monotonic() + PROBE_TIMEOUT_S
            while time.monotonic() < deadline and probe.poll() is None:
                # The kernel's own first words are enough: the address that the marker waits for never comes here.
                if console.exists() and b"farshore-lab guest:" in console.read_bytes():
                    return True
                time.sleep(0.1)
            return False
        finally:
            # timeout makes itself a group of its own and passes the signal on to what it runs.
            probe.terminate()
            probe.wait()
