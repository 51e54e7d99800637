"""Which node of a site does a piece of work."""

from __future__ import annotations

from collections.abc import Iterable

from farshore.control.store.records import Node


def choose(nodes: Iterable[Node], role: str, *, prefer: str | None = None) -> Node | None:
    """Return a node with ``role``: the preferred one if it is there, else the first by name. None if none has it."""
    able = sorted((node for node in nodes if role in node.roles), key=lambda node: (node.name != prefer, node.name))
    return able[0] if able else None
