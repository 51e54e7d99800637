"""A machine's own name in its files."""

from __future__ import annotations

import re


def hosts(text: str, old: str, new: str) -> str:
    """Return ``/etc/hosts`` with the name ``old`` of the machine itself, on its loopback lines, as ``new``."""
    lines = []
    for line in text.split("\n"):
        if line.startswith(("127.", "::1")):
            pattern = rf"(?<=\s){re.escape(old)}(?=[\s.]|$)"
            lines.append(re.sub(pattern, new, line))
        else:
            lines.append(line)
    return "\n".join(lines)
