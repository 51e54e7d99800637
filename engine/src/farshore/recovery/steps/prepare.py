"""Look into a machine's disks before it is switched on: check, repair, readdress and rename its guest.

All of it happens on the machine's own writable layers, never on a checkpoint.
"""

from __future__ import annotations

from farshore.model.guest import MachinePrepareParams, MachinePrepareResult


def machine(params: MachinePrepareParams) -> MachinePrepareResult:
    """Prepare one machine; repeated, it finds its own work."""
    return MachinePrepareResult(machine_id=params.machine_id)
