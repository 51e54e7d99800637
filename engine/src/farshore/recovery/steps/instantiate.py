"""Reconstruct disks, instantiate, attach networks.

The points are leased for the tag before anything is made from them, so that retention cannot take them away in
between; :func:`farshore.recovery.steps.sweep.sweep` gives the lease back once everything with the tag is gone.
"""

from __future__ import annotations

from farshore.errors import NotFound
from farshore.model.task import MachineCreateParams, MachineCreateResult, NetworkCreateParams
from farshore.platforms.contract import Compute, Target


def network(compute: Compute, params: NetworkCreateParams) -> None:
    """Make an isolated network; the same name and tag again find it."""
    compute.isolated_network(params)


def machine(compute: Compute, target: Target, params: MachineCreateParams) -> MachineCreateResult:
    """Make a machine from sealed points, powered off; the same name and tag again find it.

    Raises:
        NotFound: a point is gone; nothing was made.
    """
    for disk in params.disks:
        if not target.has(disk.point):
            raise NotFound(
                f"the point {disk.point!r} of disk {disk.disk_id!r} of {params.name!r} is not at this site",
                code="point-not-found",
                hint="Choose another checkpoint.",
                point=disk.point,
                disk_id=disk.disk_id,
            )
    for disk in params.disks:
        target.lease(disk.point, params.tag)
    return MachineCreateResult(machine_id=compute.create(params), name=params.name)
