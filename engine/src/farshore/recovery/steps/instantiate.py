"""Reconstruct disks, instantiate, attach networks.

The points are leased for the tag before anything is made from them, so that retention cannot take them away in
between; :func:`farshore.recovery.steps.sweep.sweep` gives the lease back once everything with the tag is gone.
"""

from __future__ import annotations

from farshore.errors import NotFound, Retry
from farshore.model.task import MachineCreateParams, MachineCreateResult, NetworkCreateParams
from farshore.platforms.contract import Compute, Target


def network(compute: Compute, params: NetworkCreateParams) -> None:
    """Make an isolated network; the same name and tag again find it."""
    compute.isolated_network(params)


def machine(compute: Compute, target: Target, params: MachineCreateParams) -> MachineCreateResult:
    """Make a machine from sealed points, powered off; the same name and tag again find it. It is read back.

    Raises:
        NotFound: a point is gone; nothing was made.
        Retry: the platform does not show all of what was ordered (``machine-incomplete``).
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
    machine_id = compute.create(params)
    lacks = _lacks(compute, machine_id, params)
    if lacks:
        raise Retry(
            f"{params.name!r} was made, but the platform shows it without {' and '.join(lacks)}",
            code="machine-incomplete",
            hint="Look at it at the site. Clean up, or go on: it is looked at again.",
            machine_id=machine_id,
        )
    return MachineCreateResult(machine_id=machine_id, name=params.name)


def _lacks(compute: Compute, machine_id: str, params: MachineCreateParams) -> list[str]:
    """Return what a machine lacks of what was ordered, as its platform shows it; a machine without it would not boot.

    Disks are compared by their number and sizes, for each platform names them in its own way and may round up.
    """
    try:
        seen = compute.facts(machine_id)
    except NotFound:
        return ["anything"]
    sizes = sorted((disk.size_bytes for disk in seen.disks), reverse=True)
    wanted = sorted((disk.size_bytes for disk in params.disks), reverse=True)
    lacks = []
    if len(sizes) < len(wanted):
        lacks.append(f"{len(wanted) - len(sizes)} of its {len(wanted)} disks")
    elif any(size < least for size, least in zip(sizes, wanted, strict=False)):
        lacks.append("disks that are large enough")
    if len(seen.nics) < len(params.nics):
        lacks.append(f"{len(params.nics) - len(seen.nics)} of its {len(params.nics)} network interfaces")
    return lacks
