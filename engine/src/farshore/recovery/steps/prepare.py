"""Look into a machine's disks before it is switched on: check, repair, readdress and rename its guest.

All of it happens on the machine's own writable layers, never on a checkpoint, and in a process of its own: what is on
the disks is somebody else's, and must be able to break nothing but that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from pydantic import ValidationError

from farshore.errors import Conflict, FarshoreError, Permanent
from farshore.model.guest import MachinePrepareParams, MachinePrepareResult, stopping
from farshore.model.machine import Finding, MachineFacts
from farshore.platforms.contract import Compute, OpenDisk
from farshore.recovery.steps import convert

#: A guest with large initial file systems takes some ten seconds; this is for one that keeps a parser busy for ever.
TIMEOUT_S: Final = 600.0
_POLL_S: Final = 0.5


def machine(compute: Compute, params: MachinePrepareParams, check: Callable[[], None]) -> MachinePrepareResult:
    """Prepare one machine; repeated, it finds its own work. ``check`` raises when it is to stop.

    What keeps the node from looking is a finding, and the plan says whether it stops the machine; so is what keeps a
    platform from having in the machine what was changed.

    Raises:
        Conflict: the machine is on, or its disks are not ours.
    """
    began = time.monotonic()
    result = None
    try:
        with compute.open_disks(params.machine_id) as disks:
            # A platform whose machines have nothing in them has nothing to be prepared.
            result = _apart(params, disks, check) if disks else MachinePrepareResult(machine_id=params.machine_id)
            if disks and convert.wanted(params, result):
                result = _converted(params, disks, check, result)
    except Conflict:
        raise
    except Permanent as error:
        result = _unseen(params, error) if result is None else _unkept(params, result, error)
    return result.model_copy(update={"seconds": round(time.monotonic() - began, 3)})


def as_made(params: MachinePrepareParams, platform: str, made: MachineFacts) -> MachinePrepareParams:
    """Return ``params`` with the devices that a machine has now: a platform has its own in the place of others'."""
    buses = {disk.disk_id: disk.bus for disk in made.disks}
    first = next((disk.bus for disk in made.disks if disk.boot), made.disks[0].bus if made.disks else None)
    disks = tuple(disk.model_copy(update={"bus": buses.get(disk.disk_id, first) or disk.bus}) for disk in params.disks)
    models = {nic.mac.lower(): nic.model for nic in made.nics}
    nics = []
    for index, nic in enumerate(params.nics):
        here = made.nics[index] if index < len(made.nics) else None
        if nic.mac.lower() in models:
            nics.append(nic.model_copy(update={"model": models[nic.mac.lower()]}))
        elif here is not None:  # a platform that chooses hardware addresses itself keeps their order
            nics.append(nic.model_copy(update={"mac": here.mac, "model": here.model}))
        else:
            nics.append(nic)
    was = [*(disk.bus for disk in params.disks), *(nic.model for nic in params.nics)]
    crossed = was != [*(disk.bus for disk in disks), *(nic.model for nic in nics)]
    return params.model_copy(update={"platform": platform, "crossed": crossed, "disks": disks, "nics": tuple(nics)})


def _converted(
    params: MachinePrepareParams, disks: Sequence[OpenDisk], check: Callable[[], None], before: MachinePrepareResult
) -> MachinePrepareResult:
    """Have a guest converted, and look again."""
    change, found = convert.convert(params, disks, convert.run)
    if change is None:
        findings = (*before.findings, *([found] if found else []))
        return before.model_copy(update={"findings": findings, "stopped": stopping(findings, params.policy)})
    after = _apart(params, disks, check)
    return after.model_copy(update={"changes": (*before.changes, change, *after.changes)})


def _unseen(params: MachinePrepareParams, error: FarshoreError) -> MachinePrepareResult:
    """Return what is known of a guest that could not be looked into."""
    found = Finding(code=error.code, severity="warning", message=error.message, remedy=error.hint, subject=params.name)
    return MachinePrepareResult(
        machine_id=params.machine_id, findings=(found,), stopped=stopping((found,), params.policy)
    )


def _unkept(params: MachinePrepareParams, result: MachinePrepareResult, error: FarshoreError) -> MachinePrepareResult:
    """Return what is left of a result when the disks were given back and are not what it says."""
    lost = ", ".join(change.what for change in result.changes)
    found = Finding(
        code=error.code,
        severity="error" if lost else "warning",
        message=f"the machine does not have what was changed in its guest ({lost}): {error.message}"
        if lost
        else error.message,
        remedy=error.hint,
        subject=params.name,
    )
    findings = (*result.findings, found)
    return result.model_copy(update={"findings": findings, "changes": (), "stopped": stopping(findings, params.policy)})


def _apart(params: MachinePrepareParams, disks: Sequence[OpenDisk], check: Callable[[], None]) -> MachinePrepareResult:
    """Run :mod:`farshore.recovery.guest` for one machine, with mounts that end with it."""
    boots = {disk.disk_id for disk in params.disks if disk.boot}
    job = {
        "params": params.model_dump(mode="json"),
        "disks": [
            {"disk_id": disk.disk_id, "path": str(disk.path), "boot": disk.disk_id in boots or disk.boot}
            for disk in disks
        ],
    }
    argv = [sys.executable, "-I", "-m", "farshore.recovery.guest"]
    if os.geteuid() == 0 and shutil.which("unshare"):
        argv = ["unshare", "--mount", "--propagation", "slave", *argv]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    try:
        said, complaint = _await(process, json.dumps(job), check)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise Permanent(
            f"looking into the guest ended with status {process.returncode}: {complaint.strip()[-300:]}",
            code="guest-unreadable",
            hint="Report it; set guest.checks: off to go on without.",
        )
    try:
        return MachinePrepareResult.model_validate_json(said)
    except ValidationError as error:
        raise Permanent("looking into the guest answered nothing that is known", code="guest-unreadable") from error


def _await(process: subprocess.Popen[str], job: str, check: Callable[[], None]) -> tuple[str, str]:
    deadline = time.monotonic() + TIMEOUT_S
    given: str | None = job
    while True:
        try:
            return process.communicate(given, timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            given = None  # it was handed over with the first call
        check()
        if time.monotonic() > deadline:
            raise Permanent(
                f"looking into the guest did not end in {TIMEOUT_S:g} s",
                code="guest-unreadable",
                hint="Set guest.checks: off to go on without.",
            )
