"""Power of machines: stopped and proven so, started, fenced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from farshore.errors import Conflict, Permanent, Retry
from farshore.model.machine import Power
from farshore.model.task import MachineResult
from farshore.platforms.contract import Boots, Compute

#: A guest that has powered itself off during a backup job is shown as running by libvirt for 30 s after the job's end,
#: where nobody calls it to end what is left (the kvm platform does).
VERIFY_OFF_S: Final = 45.0
_POLL_S: Final = 0.5

#: Waits that many seconds; True if the step is to stop (``threading.Event.wait``).
Wait = Callable[[float], bool]


def stop(
    compute: Compute,
    machine_id: str,
    timeout_s: float,
    on_timeout: Literal["abort", "power_off"],
    *,
    clock: Callable[[], float],
    wait: Wait,
) -> MachineResult:
    """Shut a machine down cleanly and prove that it is off; nothing to do when it is.

    Raises:
        Conflict: it is still on after ``timeout_s`` and the policy says ``abort``.
        Retry: it does not show as off although it was stopped.
    """
    if compute.power(machine_id) == "off":
        return MachineResult(machine_id=machine_id, power="off", detail="was off")
    detail = "shut down cleanly"
    if not compute.stop(machine_id, timeout_s) and compute.power(machine_id) != "off":
        if on_timeout == "abort":
            raise Conflict(
                f"machine {machine_id!r} did not shut down within {timeout_s:g} s",
                code="stop-timeout",
                hint="Shut it down in the guest, raise shutdown.timeout, or set shutdown.on_timeout: power_off.",
                machine_id=machine_id,
                timeout_s=timeout_s,
            )
        compute.power_off(machine_id)
        detail = f"powered off after {timeout_s:g} s without a clean shutdown"
    power = await_power(compute, machine_id, "off", VERIFY_OFF_S, clock=clock, wait=wait)
    if power != "off":
        raise Retry(
            f"machine {machine_id!r} was stopped but shows as {power}",
            code="not-verified-off",
            machine_id=machine_id,
            power=power,
        )
    return MachineResult(machine_id=machine_id, power=power, detail=detail)


def await_power(
    compute: Compute, machine_id: str, wanted: Power, timeout_s: float, *, clock: Callable[[], float], wait: Wait
) -> Power:
    """Return the machine's state as soon as it is ``wanted``, or what it is after ``timeout_s``."""
    deadline = clock() + timeout_s
    while True:
        power = compute.power(machine_id)
        if power == wanted or clock() >= deadline or wait(_POLL_S):
            return power


def start(
    compute: Compute, machine_id: str, boots: Boots | None, *, clock: Callable[[], float], wait: Wait
) -> MachineResult:
    """Power a machine on and read back, also that it has booted where the provider can tell; once is enough.

    A step that is to stop does not wait for that.

    Raises:
        Fenced: the machine is fenced.
        Retry: it does not show as on.
        Permanent: it did not boot.
    """
    detail = "was on"
    if compute.power(machine_id) != "on":
        compute.start(machine_id)
        power = compute.power(machine_id)
        if power != "on":
            raise Retry(f"machine {machine_id!r} was started but shows as {power}", code="not-verified-on", power=power)
        detail = ""
    if boots is not None:
        _await_boot(boots, machine_id, clock, wait)
    return MachineResult(machine_id=machine_id, power="on", detail=detail)


def _await_boot(boots: Boots, machine_id: str, clock: Callable[[], float], wait: Wait) -> None:
    deadline = clock() + boots.within_s
    while not boots.look(machine_id):
        if clock() >= deadline:
            raise Permanent(
                f"machine {machine_id!r} is on, but does not pass its provider's checks after {boots.within_s:g} s",
                code="not-booted",
                hint="Look at its console. A guest needs drivers for the provider's disks and network, and DHCP.",
                machine_id=machine_id,
            )
        if wait(boots.poll_s):
            return


def fence(compute: Compute, machine_id: str, epoch: int) -> MachineResult:
    """Keep a machine from starting, and read that back.

    Raises:
        Permanent: the platform did not keep the fence.
    """
    if not compute.fence(machine_id, epoch):
        raise Permanent(
            f"the platform did not keep the fence of machine {machine_id!r}",
            code="fence-not-kept",
            hint="See to it by hand that the machine cannot start, then run the recovery again.",
            machine_id=machine_id,
        )
    return MachineResult(machine_id=machine_id, power=compute.power(machine_id), fenced=True)


def cut(compute: Compute, machine_id: str, *, clock: Callable[[], float], wait: Wait) -> None:
    """Power a machine off without asking its guest, and prove that it is off.

    Raises:
        Retry: it does not show as off.
    """
    if compute.power(machine_id) == "off":
        return
    compute.power_off(machine_id)
    power = await_power(compute, machine_id, "off", VERIFY_OFF_S, clock=clock, wait=wait)
    if power != "off":
        raise Retry(
            f"machine {machine_id!r} was powered off but shows as {power}",
            code="not-verified-off",
            machine_id=machine_id,
            power=power,
        )


def unfence(compute: Compute, machine_id: str) -> MachineResult:
    """Lift the fence."""
    compute.unfence(machine_id)
    return MachineResult(machine_id=machine_id, power=compute.power(machine_id), fenced=False)
