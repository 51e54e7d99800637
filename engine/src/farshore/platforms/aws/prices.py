"""List prices of AWS, until a site's settings say its own.

They are those of us-east-1, and estimates are made with them everywhere: regions differ by some ten percent. Calls are
as the examples in https://docs.aws.amazon.com/ebs/latest/userguide/ebsapi-pricing.html (read 2026-11-23). Storage, of
snapshots in the standard tier, and transfer, the first step of what goes out to the internet, are as commonly cited:
AWS's own page of prices was not read for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from farshore.model.prices import Prices

LIST: Final = Prices(
    currency="USD",
    region="us-east-1",
    as_of="2026-11, storage and transfer not verified",
    source="https://aws.amazon.com/ebs/pricing/",
    write_calls=0.006,
    read_calls=0.003,
    list_calls=0.0006,
    stored_gib_month=0.05,
    sent_gib=0.09,
)
#: What settings may say.
AMOUNTS: Final = ("write_calls", "read_calls", "list_calls", "stored_gib_month", "sent_gib")


def prices(own: Mapping[str, float]) -> Prices:
    """Return the prices of a site; ``own`` are those that its settings say."""
    said = f"{LIST.source}, but for platform.prices: {', '.join(sorted(own))}" if own else LIST.source
    return LIST.model_copy(update={**own, "source": said})
