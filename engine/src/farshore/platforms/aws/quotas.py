"""What an account may do at once, for the control plane, which leases parts of it to nodes."""

from __future__ import annotations

from farshore.errors import FarshoreError
from farshore.model.machine import ComputeLimits
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.pacing import PENDING_LEFT, PENDING_MAX, RATES, READS, WRITES


def limits(account: Account) -> ComputeLimits:
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
        drafts=PENDING_MAX - PENDING_LEFT,
    )
