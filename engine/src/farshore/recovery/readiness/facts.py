"""What is looked at, and how a finding is written. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from farshore.model.kit import Kit
from farshore.model.machine import ComputeLimits, Finding, MachineFacts, NetworkFacts, PoolFacts, Quota
from farshore.model.plan import Plan, Purpose

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node of a site. ``certificate_s``: how long its certificate is still good. ``kit``: None before it said."""

    name: str
    online: bool
    roles: frozenset[str]
    certificate_s: float | None = None
    kit: Kit | None = None


@dataclass(frozen=True, slots=True)
class SiteState:
    """A site as it was seen last; ``networks`` is None where it was never looked at."""

    name: str
    nodes: tuple[NodeState, ...] = ()
    networks: tuple[NetworkFacts, ...] | None = None
    pool: PoolFacts | None = None
    findings: tuple[Finding, ...] = ()
    #: Addresses that machines there have now, each with the machine's name.
    addresses: dict[str, str] = field(default_factory=dict)
    bundle: Literal["current", "late", "missing"] = "current"
    #: What its provider takes at once, and at most.
    limits: ComputeLimits = field(default_factory=ComputeLimits)
    #: The kinds of probes that see something of a machine in a drill; None: all.
    drill_probes: tuple[str, ...] | None = None
    #: What its provider lets the account have; None where it does not say.
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class MachineState:
    """A machine of the plan. ``now``: as its site shows it; ``captured``: as its newest checkpoint holds it.

    ``copied`` are the ids of the disks in that checkpoint. ``seen``: its site has an inventory at all.
    """

    name: str
    active: bool
    rpo_s: float | None
    now: MachineFacts | None = None
    captured: MachineFacts | None = None
    copied: frozenset[str] = frozenset()
    seen: bool = True
    suspect_newest: bool = False
    suspect_older: int = 0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The plan's newest drill that ended."""

    run_id: str
    age_s: float
    state: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is looked at.

    ``taken``: addresses of other plans' machines for the same site and purpose. ``control_host``: the boot of the host
    that the control plane runs on; ``control_machine``: the machine of the source site that it runs in, empty: in none.
    """

    plan: Plan
    state: str
    purpose: Purpose
    source: SiteState
    target: SiteState
    machines: tuple[MachineState, ...]
    drill: Rehearsal | None = None
    drilled_s: float | None = None
    taken: dict[tuple[Purpose, str], str] = field(default_factory=dict)
    unfenced: tuple[str, ...] = ()
    superseded: bool = False
    recovery_key_is_here: bool = False
    control_host: str = ""
    control_machine: str = ""


def finding(code: str, severity: Severity, subject: str, message: str, remedy: str) -> Finding:
    """Return a finding."""
    return Finding(code=code, severity=severity, subject=subject, message=message, remedy=remedy)


def facts_of(machine: MachineState) -> MachineFacts:
    """Return the machine as it would be recovered, else as it is."""
    return machine.captured or machine.now or MachineFacts(machine_id="", name=machine.name)
