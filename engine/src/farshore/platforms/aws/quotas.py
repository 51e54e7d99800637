"""What an account may do at once, for the control plane, which leases parts of it to nodes."""

from __future__ import annotations

import contextlib

from farshore.errors import FarshoreError
from farshore.model.machine import ComputeLimits
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.ebs import LARGEST_BYTES
from farshore.platforms.aws.pacing import PENDING_LEFT, PENDING_MAX, RATES, READS, WRITES
from farshore.platforms.aws.types import Types
from farshore.platforms.aws.volumes import volumes_of


def limits(account: Account, types: Types) -> ComputeLimits:
    """Return the limits of the account in this region, with its name; all sites in it share them.

    Whose the credentials are needs no permission to be asked. Where it cannot be told, the site stands for itself.
    """
    settings = account.settings
    try:
        name = f"{account.patiently('sts', 'get_caller_identity')['Account']}.{settings.region}"
    except FarshoreError:
        name = ""
    rates = {**RATES, **settings.api_rates}
    return ComputeLimits(
        account=name,
        writes={operation: rates[operation] for operation in WRITES},
        reads={operation: rates[operation] for operation in READS},
        drafts=_drafts(account, types),
        disk_bytes=LARGEST_BYTES,
        instance_types=_offered(types),
    )


def _offered(types: Types) -> tuple[str, ...] | None:
    """Return the names of the types that the zone offers; None where it cannot be told, which the check tells."""
    try:
        return tuple(sorted(types.offered()))
    except FarshoreError:
        return None


def _drafts(account: Account, types: Types) -> int:
    """Return how many disks may be written at once: what the account allows, or this node's machine has places for."""
    most = PENDING_MAX - PENDING_LEFT
    if account.settings.target == "attached":
        # That the node is on no instance is told by the check, and by whatever needs one.
        with contextlib.suppress(FarshoreError):
            most = min(most, volumes_of(account).room(types))
    return most
