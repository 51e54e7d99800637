"""A provider's account: machines, quotas and limits, with drawn latencies and faults. Time is an argument.

Every call has a beginning and an end: :meth:`Account.begin` admits it (or not) and says when it ends,
:meth:`Account.finish` carries it out. What was admitted is carried out whatever becomes of the caller, as with a real
provider. Each call is written down, so that an oracle that knows nothing of this code can judge what was asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Final

#: Operations that change machines, which the provider admits only so many of at once.
CREATE: Final = "create"
START: Final = "start"
#: Who looks at the account, or changes it, from outside of the experiment: neither limited nor disturbed.
OWNER: Final = "experiment"
#: What an operation takes at least and at most, in seconds, unless it is scripted otherwise.
LATENCIES: Final[dict[str, tuple[float, float]]] = {
    CREATE: (0.2, 0.8),
    START: (0.1, 0.4),
    "stop": (0.05, 0.3),
    "": (0.001, 0.01),
}
#: What a slow reply takes longer, as a factor.
SLOWNESS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the account may do: operations at once, calls per second (and in one burst), machines and processors."""

    creates: int = 20
    starts: int = 20
    calls_per_s: float = 200.0
    burst: int = 100
    machines: int = 10_000
    cpus: int = 20_000


@dataclass(frozen=True, slots=True)
class Faults:
    """How often things go wrong, as probabilities.

    ``throttle``, ``lose`` (the reply, after the call was carried out) and ``slow`` are per call; ``stuck`` (never
    boots) and ``red`` (boots, but its service does not come up) per machine and boot.
    """

    throttle: float = 0.0
    lose: float = 0.0
    slow: float = 0.0
    stuck: float = 0.0
    red: float = 0.0


@dataclass(slots=True)
class Instance:
    """One machine. ``ready_at``: when its guest is up; None while it is off or never will be."""

    machine_id: str
    name: str
    facts: dict[str, Any]
    tag: str = ""
    key: str = ""
    power: str = "off"
    ready_at: float | None = None
    red: bool = False
    fence: int | None = None
    boots: int = 0


@dataclass(slots=True)
class Pending:
    """A call that was admitted and ends at ``ends_at``. ``lost``: nobody hears how."""

    number: int
    operation: str
    params: dict[str, Any]
    caller: str
    began_at: float
    ends_at: float
    act: Callable[[float], Any]
    lost: bool = False
    joined: bool = False
    error: dict[str, str] | None = None


@dataclass(slots=True)
class Account:
    """Everything that one provider account holds."""

    limits: Limits = field(default_factory=Limits)
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    latencies: dict[str, tuple[float, float]] = field(default_factory=lambda: dict(LATENCIES))
    boot_s: tuple[float, float] = (0.3, 1.0)
    machines: dict[str, Instance] = field(default_factory=dict)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Told of each call once it has ended.
    record: Callable[[dict[str, Any]], None] = lambda _: None
    _calls: int = 0
    _at_work: dict[str, Pending] = field(default_factory=dict)
    _tokens: float = 0.0
    _filled_at: float | None = None

    # --- calls -----------------------------------------------------------------------------------------------------

    def begin(self, operation: str, params: dict[str, Any], now: float, caller: str = "") -> Pending:
        """Admit a call; one that is refused ends at once with ``error``."""
        self._calls += 1
        draw = random.Random(f"{self.seed}/{self._calls}/{operation}")  # noqa: S311 - a drawn latency, no secret
        pending = Pending(self._calls, operation, params, caller, now, now, lambda _: None)
        ours = caller == OWNER
        if not ours and not self._take_token(now):
            pending.error = _error("throttled", "more calls than the account may make", limit="calls_per_s")
            return pending
        if draw.random() < self.faults.throttle and not ours:
            pending.error = _error("throttled", "the provider is busy")
            return pending
        low, high = self.latencies.get(operation, self.latencies[""])
        seconds = draw.uniform(low, high) * (SLOWNESS if draw.random() < self.faults.slow else 1.0)
        pending.ends_at = now + seconds
        pending.lost = draw.random() < self.faults.lose and not ours
        try:
            handler = getattr(self, f"_{operation.replace('-', '_')}")
        except AttributeError:
            pending.error = _error("invalid", f"there is no operation {operation!r}")
            pending.ends_at = now
            return pending
        handler(pending, draw)
        if pending.error is not None:
            pending.ends_at, pending.lost = now, False
        return pending

    def finish(self, pending: Pending, now: float) -> dict[str, Any]:
        """Carry out a call that has been admitted, write it down, and return the reply."""
        result: Any = None
        if pending.error is None:
            try:
                result = pending.act(now)
            except LookupError as error:
                pending.error = _error("not-found", str(error.args[0]))
            except PermissionError as error:
                pending.error = _error("fenced", str(error.args[0]))
        for key in [key for key, other in self._at_work.items() if other is pending]:
            del self._at_work[key]
        self.record(
            {
                "number": pending.number,
                "operation": pending.operation,
                "of": str(pending.params.get("name") or pending.params.get("machine_id") or ""),
                "key": str(pending.params.get("key", "")),
                "caller": pending.caller,
                "began_at": round(pending.began_at, 6),
                "ended_at": round(now, 6),
                "error": pending.error["kind"] if pending.error else None,
                "limit": (pending.error or {}).get("limit"),
                "lost": pending.lost,
                "joined": pending.joined,
                "result": result if isinstance(result, (str, bool)) else None,
            }
        )
        return {"error": pending.error} if pending.error else {"result": result}

    def _take_token(self, now: float) -> bool:
        if self._filled_at is None:
            self._tokens, self._filled_at = float(self.limits.burst), now
        earned = (now - self._filled_at) * self.limits.calls_per_s
        self._tokens, self._filled_at = min(self._tokens + earned, float(self.limits.burst)), now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _is_full(self, pending: Pending, most: int) -> bool:
        """Refuse an operation of which too many are at work."""
        at_work = sum(other.operation == pending.operation for other in self._at_work.values())
        if at_work >= most:
            pending.error = _error("throttled", f"{most} at once is the most", limit=pending.operation)
        return at_work >= most

    def _find(self, machine_id: str) -> Instance:
        machine = self.machines.get(machine_id)
        if machine is None:
            raise LookupError(f"there is no machine {machine_id!r}")
        return machine

    # --- making and removing ---------------------------------------------------------------------------------------

    def _create(self, pending: Pending, _draw: random.Random) -> None:
        """Make a machine; the same key finds the one that is there, or that is being made."""
        key = str(pending.params["key"])
        working = self._at_work.get(f"{CREATE}/{key}")
        there = next((machine for machine in self.machines.values() if machine.key == key), None)
        if working is not None or there is not None:
            pending.joined = True
            pending.ends_at = working.ends_at if working else pending.ends_at
            pending.act = lambda _now: next(item.machine_id for item in self.machines.values() if item.key == key)
            return
        if self._is_full(pending, self.limits.creates):
            return
        cpus = int(pending.params["facts"].get("cpus", 1))
        making = [other for other in self._at_work.values() if other.operation == CREATE]
        machines = len(self.machines) + len(making)
        used = sum(int(machine.facts.get("cpus", 1)) for machine in self.machines.values())
        used += sum(int(other.params["facts"].get("cpus", 1)) for other in making)
        if machines + 1 > self.limits.machines or used + cpus > self.limits.cpus:
            pending.error = _error("quota", "the account's quota is used up", limit="quota")
            return
        self._at_work[f"{CREATE}/{key}"] = pending

        def make(_now: float) -> str:
            number = sha256(f"{self.seed}/{key}/{pending.number}".encode()).hexdigest()
            name, tag = str(pending.params["name"]), str(pending.params["tag"])
            made = Instance(f"sim-{number[:16]}", name, dict(pending.params["facts"]), tag, key)
            made.facts |= {"machine_id": made.machine_id, "name": name}
            self.machines[made.machine_id] = made
            return made.machine_id

        pending.act = make

    def _network(self, pending: Pending, _draw: random.Random) -> None:
        name = str(pending.params["name"])
        pending.act = lambda _now: bool(self.networks.setdefault(name, dict(pending.params)))

    def _sweep(self, pending: Pending, _draw: random.Random) -> None:
        tag = str(pending.params["tag"])

        def sweep(_now: float) -> dict[str, list[str]]:
            machines = [machine for machine in self.machines.values() if machine.tag == tag]
            networks = [name for name, network in self.networks.items() if network.get("tag") == tag]
            for machine in machines:
                del self.machines[machine.machine_id]
            for name in networks:
                del self.networks[name]
            removed = [f"machine {item.name}" for item in machines] + [f"network {name}" for name in networks]
            return {"removed": sorted(removed), "remaining": []}

        pending.act = sweep

    # --- power -----------------------------------------------------------------------------------------------------

    def _start(self, pending: Pending, draw: random.Random) -> None:
        machine_id = str(pending.params["machine_id"])
        machine = self.machines.get(machine_id)
        working = self._at_work.get(f"{START}/{machine_id}")
        if working is not None or (machine is not None and machine.power == "on"):
            pending.joined = True
            pending.ends_at = working.ends_at if working else pending.ends_at
        elif self._is_full(pending, self.limits.starts):
            return
        else:
            self._at_work[f"{START}/{machine_id}"] = pending
        stuck, red = draw.random() < self.faults.stuck, draw.random() < self.faults.red
        boot_s = draw.uniform(*self.boot_s)

        def start(now: float) -> bool:
            found = self._find(machine_id)
            if found.fence is not None:
                raise PermissionError(f"machine {found.name!r} is fenced since epoch {found.fence}")
            if found.power != "on":
                found.power, found.boots, found.red = "on", found.boots + 1, red
                found.ready_at = None if stuck else now + boot_s
            return True

        pending.act = start

    def _stop(self, pending: Pending, _draw: random.Random) -> None:
        def stop(_now: float) -> bool:
            machine = self._find(str(pending.params["machine_id"]))
            machine.power, machine.ready_at = "off", None
            return True

        pending.act = stop

    def _power_off(self, pending: Pending, draw: random.Random) -> None:
        self._stop(pending, draw)

    def _power(self, pending: Pending, _draw: random.Random) -> None:
        pending.act = lambda _now: self._find(str(pending.params["machine_id"])).power

    def _fence(self, pending: Pending, _draw: random.Random) -> None:
        def fence(_now: float) -> bool:
            machine = self._find(str(pending.params["machine_id"]))
            machine.fence = max(int(pending.params["epoch"]), machine.fence or 0)
            return True

        pending.act = fence

    def _unfence(self, pending: Pending, _draw: random.Random) -> None:
        def unfence(_now: float) -> bool:
            self._find(str(pending.params["machine_id"])).fence = None
            return True

        pending.act = unfence

    # --- looking ---------------------------------------------------------------------------------------------------

    def _facts(self, pending: Pending, _draw: random.Random) -> None:
        pending.act = lambda _now: _shown(self._find(str(pending.params["machine_id"])))

    def _addresses(self, pending: Pending, _draw: random.Random) -> None:
        pending.act = lambda _now: [
            address
            for nic in self._find(str(pending.params["machine_id"])).facts.get("nics", ())
            for address in nic.get("addresses", ())
        ]

    def _console(self, pending: Pending, _draw: random.Random) -> None:
        def console(now: float) -> str:
            machine = self._find(str(pending.params["machine_id"]))
            if machine.power != "on":
                return ""
            if machine.ready_at is None or now < machine.ready_at:
                return f"{machine.name} boots\n"
            return f"{machine.name} boots\n{'service failed' if machine.red else 'ready'}\n"

        pending.act = console

    def _inventory(self, pending: Pending, _draw: random.Random) -> None:
        def inventory(_now: float) -> dict[str, Any]:
            machines = list(self.machines.values())
            return {
                "machines": [_shown(machine) for machine in machines],
                "networks": [{"name": name} for name in self.networks],
                "limits": asdict(self.limits),
                "used": {
                    "machines": len(machines),
                    "cpus": sum(int(machine.facts.get("cpus", 1)) for machine in machines),
                },
            }

        pending.act = inventory

    # --- the other side of the desk: what an experiment does to the account ------------------------------------------

    def _set(self, pending: Pending, _draw: random.Random) -> None:
        """Change limits and faults, or heal all machines (``heal``); add machines and networks as they are."""

        def change(now: float) -> bool:
            params = pending.params
            self.limits = Limits(**{**asdict(self.limits), **params.get("limits", {})})
            self.faults = Faults(**{**asdict(self.faults), **params.get("faults", {})})
            for facts in params.get("machines", ()):
                machine_id, power = str(facts["machine_id"]), str(facts.get("power", "on"))
                ready_at = now if power == "on" else None
                self.machines[machine_id] = Instance(
                    machine_id, str(facts["name"]), dict(facts), power=power, ready_at=ready_at
                )
            for name in params.get("networks", ()):
                self.networks[str(name)] = {"name": name}
            if params.get("heal"):
                for machine in self.machines.values():
                    machine.red = False
                    machine.ready_at = now if machine.power == "on" else None
            return True

        pending.act = change


def _shown(machine: Instance) -> dict[str, Any]:
    tags = {"farshore": machine.tag} if machine.tag else {}
    return {**machine.facts, "power": machine.power, "tags": {**machine.facts.get("tags", {}), **tags}}


def _error(kind: str, message: str, limit: str = "") -> dict[str, str]:
    return {"kind": kind, "message": message, **({"limit": limit} if limit else {})}
