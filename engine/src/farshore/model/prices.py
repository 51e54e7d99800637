"""What a site's provider charges for, as data: list prices of one region, for estimates."""

from __future__ import annotations

from pydantic import Field

from farshore.model.base import Report
from farshore.units import KIB


class Prices(Report):
    """Prices as a site's node tells them; what costs nothing is 0.

    Attributes:
        currency, region, as_of, source: of what the prices are, when they were read, and where.
        write_calls, read_calls, list_calls: for a thousand calls.
        call_bytes: what one call writes or reads.
        listed: blocks that one listing names at most.
        stored_gib_month: for a GiB that a point keeps for a month.
        sent_gib: for a GiB that leaves the provider.
    """

    currency: str = "USD"
    region: str = ""
    as_of: str = ""
    source: str = ""
    write_calls: float = 0.0
    read_calls: float = 0.0
    list_calls: float = 0.0
    call_bytes: int = Field(512 * KIB, gt=0)
    listed: int = Field(10_000, gt=0)
    stored_gib_month: float = 0.0
    sent_gib: float = 0.0
