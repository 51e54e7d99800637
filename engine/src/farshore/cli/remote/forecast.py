"""What a preview says of time, room and risk, for people."""

from __future__ import annotations

from typing import Any, Final

from farshore.cli import formats

#: Parts of a preview that have rows of their own.
KEYS: Final = frozenset({"rto", "capacity", "risk", "guests"})


def rows(after: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the forecast, what is left of the target's room, and what is at risk; nothing where a preview has none."""
    found = []
    rto = after.get("rto")
    if isinstance(rto, dict):
        found.append(("RTO forecast", f"{formats.duration(rto['seconds'])}; {rto['known_from']}"))
        path = [f"{one['step']} {one['machine']}".strip() + f" {one['seconds']:.1f} s" for one in rto["critical_path"]]
        found.append(("critical path", " → ".join(path)))
    capacity = after.get("capacity")
    if isinstance(capacity, dict):
        left = capacity["pool_left_bytes"]
        parts = [f"{formats.size(capacity['pool_bytes'])} of the pool at {capacity['site']}"]
        if left is not None:
            parts.append(f"{formats.size(left)} left" if left >= 0 else f"{formats.size(-left)} TOO LITTLE")
        parts += [
            f"{capacity[key]} {what} left"
            for key, what in (("machines_left", "machines"), ("cpus_left", "processors"))
            if capacity[key] is not None
        ]
        found.append(("room", "; ".join(parts)))
    risk = after.get("risk")
    if isinstance(risk, dict) and risk:
        known = [
            one["bytes"] for one in {one["group"]: one for one in risk.values()}.values() if one["bytes"] is not None
        ]
        longest = max(one["seconds"] for one in risk.values())
        size = f"about {formats.size(sum(known))}" if known else "an unknown number of bytes"
        found.append(("at risk", "nothing" if longest == 0 else f"{formats.duration(longest)}, {size}"))
    guests = after.get("guests")
    if isinstance(guests, dict):
        found += [("guest " + name, _guest(seen)) for name, seen in guests.items()]
    return found


def _guest(seen: dict[str, Any] | None) -> str:
    """Return what the last drill found in a guest, the worst first."""
    if seen is None:
        return "never drilled: nothing is known of it"
    rank = {"error": 0, "warning": 1, "info": 2}
    findings = sorted(seen["findings"], key=lambda one: rank.get(one["severity"], 3))
    said = "; ".join(f"{one['severity']}: {one['message']} [{one['code']}]" for one in findings) or "nothing is wrong"
    repaired = ", ".join(change["what"] for change in seen["changes"])
    return f"{said}{'; changed: ' + repaired if repaired else ''} (drill {seen['run']})"
