"""What all services of the double share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doubles.aws.behaviour import Behaviour, Clock
from doubles.aws.blocks import Blocks, Snapshot
from doubles.aws.errors import denied, throttled
from doubles.aws.faults import Faults
from doubles.aws.policy import Asked, Policy, action_of, allowed

_Registers = Callable[[Snapshot, dict[str, str], str], None]


@dataclass
class World:
    """The account. ``lock`` is held for everything but a block's bytes."""

    folder: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    behaviour: Behaviour = field(default_factory=Behaviour)
    clock: Clock = field(default_factory=Clock)
    faults: Faults = field(default_factory=Faults)
    policy: Policy = field(default_factory=Policy)
    calls: list[tuple[str, str, float, str, str, str]] = field(default_factory=list)
    tokens: dict[tuple[str, str, str], tuple[Any, Any]] = field(default_factory=dict)
    #: Instances that stay in the state that they pass through.
    held: set[str] = field(default_factory=set)
    #: Set by moto's half: makes a snapshot known to EC2 (as its newest), and says whether a key can be used.
    register: _Registers = lambda _snapshot, _tags, _description: None
    started: Callable[[str], None] = lambda _snapshot_id: None
    key_usable: Callable[[str, str], bool] = lambda _region, _key: True
    default_key: Callable[[str], str] = lambda _region: ""
    #: Set by moto's half: the policies of whom an access key belongs to; None: of nobody who is held to any.
    policies_of: Callable[[str], list[Mapping[str, Any]] | None] = lambda _key: None

    def __post_init__(self) -> None:
        self.blocks = Blocks(self.folder)
        self._levels: dict[tuple[str, str], tuple[float, float]] = {}

    def clear(self) -> None:
        """Make everything as it was at the start, but for moto's half."""
        self.blocks.clear()
        self.behaviour = Behaviour()
        self.clock.ahead = 0.0
        self.faults.clear()
        self.policy.set(None)
        self.calls.clear()
        self.tokens.clear()
        self.held.clear()
        self._levels.clear()

    def record(self, service: str, operation: str, outcome: str, region: str = "", resource: str = "") -> None:
        """Note a call."""
        self.calls.append((service, operation, time.time(), outcome, region, resource))

    def admit(
        self,
        service: str,
        operation: str,
        key: str,
        region: str,
        resource: str,
        tags: tuple[Mapping[str, str], ...] = (),
    ) -> None:
        """Refuse what a policy does not allow, or what comes too quickly. ``key``: the caller's access key."""
        asked = Asked(action_of(service, operation), region, resource, tags)
        theirs = self.policies_of(key)
        if not self.policy.allows(asked) or (theirs is not None and not allowed(theirs, asked)):
            raise denied(service, asked.action)
        now = time.monotonic()
        if (rate := self.behaviour.rates.get(operation)) is not None:
            self._spend(service, operation, region, (rate, rate), now)
        if (bucket := self.behaviour.buckets.get(operation)) is not None:
            self._spend(service, operation, region, bucket, now)

    def _spend(self, service: str, operation: str, region: str, bucket: tuple[float, float], now: float) -> None:
        """Take one call out of a region's bucket; ``bucket``: its size, and the refill a second."""
        (size, refill), key = bucket, (operation, region)
        level, at = self._levels.get(key, (size, now))
        level = min(size, level + (now - at) * refill)
        if level < 1:
            self._levels[key] = (level, now)
            raise throttled(service)
        self._levels[key] = (level - 1, now)

    def settle(self, snapshot: Snapshot, *, look: bool = False) -> None:
        """Let time have its way with a snapshot: time-outs of what nobody wrote to, completion after some looks."""
        if snapshot.state != "pending":
            return
        if snapshot.sealed:
            if look and snapshot.looks > 0:
                snapshot.looks -= 1
            elif snapshot.looks <= 0:
                snapshot.state = "completed"
        elif self.clock.now() > snapshot.active + snapshot.timeout_s:
            snapshot.state = "error"
            snapshot.message = "The snapshot timed out waiting for blocks"
