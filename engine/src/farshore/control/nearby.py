"""Helps with a name that is almost right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from farshore.errors import NotFound


def suggestion(wrong: str, known: Iterable[str], where: str = "") -> str:
    """Return a sentence with the names that ``wrong`` may have meant, or with what exists."""
    names = sorted(set(known))
    folded = {name.lower(): name for name in names}
    close = [folded[match] for match in difflib.get_close_matches(wrong.lower(), folded, n=3, cutoff=0.5)]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not names:
        return f"There are none yet{where}."
    return f"Known{where}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}."


def unknown(noun: str, wrong: str, known: Iterable[str], *, field: str | None = None, hint: str = "") -> NotFound:
    """Return the error for an object that does not exist."""
    return NotFound(
        f"there is no {noun} {wrong!r}",
        code=f"{noun.replace(' ', '-')}-unknown",
        field=field,
        hint=f"{suggestion(wrong, known)} {hint}".strip(),
        **{noun.replace(" ", "_"): wrong},
    )
