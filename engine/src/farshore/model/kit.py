"""What a recovery node has for its work on guests and hooks, as it tells the control plane with its polls."""

from __future__ import annotations

from pydantic import Field

from farshore.model.base import Report


class Kit(Report):
    """What is there and what is not; names alone, never what a secret says.

    Attributes:
        host: the boot of the machine that the node runs on: the same for all that runs there.
        lacks: what checks of guests need and this node does not have, each with the package that brings it.
        no_hooks: why this node can play no hooks; empty: it can.
        secrets: names of the secrets that it could hand to a hook or a probe.
    """

    host: str = Field("", max_length=64)
    lacks: tuple[str, ...] = Field((), max_length=32)
    no_hooks: str = Field("", max_length=500)
    secrets: tuple[str, ...] = Field((), max_length=1024)
