"""How the double behaves: what is set, what time it is, what went through."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Behaviour:
    """Settings. Slowness is counted in looks, not in seconds, so that no test waits."""

    #: Looks at a snapshot (describe_snapshots) that still say ``pending`` after CompleteSnapshot or create_snapshot.
    completion_looks: int = 1
    #: Calls about a snapshot (other than StartSnapshot) that are answered ResourceNotFound after it was started.
    hidden_calls: int = 0
    #: Looks at an instance that still say ``pending``, ``stopping`` or ``shutting-down``.
    state_looks: int = 1
    #: Looks at a volume that still say ``attaching``; only then its instance sees a device.
    attach_looks: int = 1
    #: Volumes that an instance can have at once.
    attachments: int = 27
    #: Looks at an instance's status that still say ``initializing``.
    status_looks: int = 1
    #: Calls about a command that are answered InvocationDoesNotExist after it was sent.
    hidden_invocations: int = 1
    #: Looks at a command that has ended which still say ``InProgress``.
    command_looks: int = 1
    #: A page holds no more than this, whatever was asked for.
    page_blocks: int = 10_000
    #: Every so many pages, one is empty although more follows; 0: never.
    empty_page_every: int = 0
    #: Pending snapshots that an account may have in a region.
    pending_snapshots: int = 100
    #: Operation -> calls a second in a region. Over it: RequestThrottledException, RequestLimitExceeded and the like.
    rates: dict[str, float] = field(default_factory=dict)
    #: Operation -> (size of its bucket, refill a second): EC2's way.
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: vCPUs of running instances that an account may have in a region.
    vcpus: int = 1_000
    #: Instance types that have no capacity, and types that a zone does not offer (zone -> types).
    no_capacity: list[str] = field(default_factory=list)
    not_offered: dict[str, list[str]] = field(default_factory=dict)
    #: GiB of all volumes that an account may have in a region, and how many snapshots.
    volume_gib: int = 51_200
    snapshots: int = 100_000
    #: Region -> which of these quotas are others there.
    regional: dict[str, dict[str, int]] = field(default_factory=dict)
    #: Whether a second CompleteSnapshot with the same arguments is accepted; the documentation does not say.
    complete_again: bool = False
    #: Blocks are hashed as they come.
    verify: bool = True
    #: Instances whose status checks fail.
    impaired: list[str] = field(default_factory=list)
    #: Volumes whose snapshots end in the state ``error``.
    failing: list[str] = field(default_factory=list)
    #: ARN of a role -> the external id that its trust policy asks for.
    external_ids: dict[str, str] = field(default_factory=dict)
    #: Whether calls count as made by TLS. They are not; but the vendor's are.
    secure: bool = True
    #: Console text that every instance shows, unless its own was set.
    console: str = ""

    def update(self, values: dict[str, Any]) -> None:
        """Set some; unknown names are errors."""
        known = {one.name for one in fields(self)}
        for name, value in values.items():
            assert name in known, name
            setattr(self, name, value)

    def quota(self, name: str, region: str) -> int:
        """Return what an account may have in a region."""
        return int(self.regional.get(region, {}).get(name, getattr(self, name)))


class Clock:
    """The double's time: the machine's own plus what a test moved it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        """Return seconds since 1970."""
        return time.time() + self.ahead
