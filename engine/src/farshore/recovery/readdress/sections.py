"""Files of sections and ``key=value`` lines, changed line by line so that all else stays as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_SECTION = re.compile(r"^\s*\[(?P<name>[^\]]+)\]\s*$")
_PAIR = re.compile(r"^\s*(?P<key>[^=#;\s][^=]*?)\s*=\s*(?P<value>.*?)\s*$")


@dataclass(frozen=True, slots=True)
class Line:
    """One line. ``number`` counts the sections, from 1; ``key`` is empty for what is no pair."""

    text: str
    section: str = ""
    number: int = 0
    key: str = ""
    value: str = ""


def read(text: str) -> Iterator[Line]:
    """Yield the lines."""
    section, number = "", 0
    for line in text.split("\n"):
        if found := _SECTION.match(line):
            section, number = found["name"].lower(), number + 1
            yield Line(line, section, number)
        elif (pair := _PAIR.match(line)) and not line.lstrip().startswith(("#", ";")):
            yield Line(line, section, number, pair["key"], pair["value"])
        else:
            yield Line(line, section, number)


def value(lines: list[Line], section: str, *keys: str) -> str:
    """Return the first value of one of ``keys`` in a section, empty if there is none."""
    wanted = {key.lower() for key in keys}
    return next((line.value for line in lines if line.section == section and line.key.lower() in wanted), "")
