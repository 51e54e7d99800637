"""What a preview says of costs, for people."""

from __future__ import annotations

from typing import Any, Final

_PARTS: Final = (("calls", "API calls"), ("storage", "storage"), ("transfer", "transfer"))
_TITLES: Final = (("per_month", "per month"), ("first_copy", "first copy"))


def rows(estimates: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the estimates of a plan after a change, with what differs from before; nothing where there are none."""
    if estimates is None or estimates["after"] is None:
        return []
    before, after = estimates["before"], estimates["after"]
    found = [(f"estimated {title}", _bill(after, before, key)) for key, title in _TITLES]
    seen = "as cycles have measured" if after["basis"] == "measured" else "assumed: no cycle has told yet"
    found.append(("for changes of", f"{after['changed_gib_per_day']:g} GiB a day, {seen}"))
    found += [("prices of", f"{one['region']}, {one['as_of']}: {one['source']}") for one in after["prices"]]
    if after["unknown_machines"]:
        found.append(("not counted", ", ".join(after["unknown_machines"])))
    return found


def _bill(after: dict[str, Any], before: dict[str, Any] | None, key: str) -> str:
    bill, currency = after[key], after["currency"]
    parts = ", ".join(f"{title} {bill[part]:.2f}" for part, title in _PARTS if bill[part])
    text = f"{bill['total']:.2f} {currency}" + (f" ({parts})" if parts else "")
    if before is not None and before[key]["total"] != bill["total"]:
        text += f"; was {before[key]['total']:.2f}"
    return text
