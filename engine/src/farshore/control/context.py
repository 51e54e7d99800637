"""What all parts of the running control plane share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from farshore.control import clock
from farshore.control.auth.ca import Authority
from farshore.control.bus import Bus
from farshore.control.home import Home
from farshore.control.store import Store


@dataclass
class Context:
    """Handed to routes as ``app.state.farshore``."""

    home: Home
    store: Store
    bus: Bus
    started: clock.Stamp

    @cached_property
    def authority(self) -> Authority:
        """Signs node certificates."""
        return self.home.authority()

    @cached_property
    def grant_key(self) -> Ed25519PrivateKey:
        """Signs grants."""
        return self.home.signing_key("grant")

    @cached_property
    def evidence_key(self) -> Ed25519PrivateKey:
        """Signs reports."""
        return self.home.signing_key("evidence")

    @cached_property
    def grant_key_pem(self) -> str:
        """The public half of the grants' key, as nodes get it."""
        return (self.home.secrets / "grant.pem").read_text(encoding="ascii")


def open_context(home: Home) -> Context:
    """Open the records of ``home``."""
    bus = Bus()
    return Context(home, Store(home.database, bus.publish), bus, clock.now())
