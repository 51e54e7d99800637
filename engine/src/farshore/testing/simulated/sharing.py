"""Recovery nodes that share the steps of a run, with replication beside them."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from farshore.platforms.file.machine import FileMachine
from farshore.testing.simulated.house import SOURCE, TARGET, Fleet, House, until
from farshore.units import MIB

#: Tasks that a recovery node works on at once: few, so that it is the nodes that a run waits for.
SLOTS: Final = 8
_PROVIDER: Final = {
    "limits": {"creates": 500, "starts": 500, "calls_per_s": 5000.0, "burst": 2000},
    "latencies": {"create": [1.5, 2.5], "start": [0.7, 1.3]},
    "boot_s": [1.0, 2.0],
}
_PATIENCE_S: Final = 1800.0
_COPY_RATE: Final = "8 MiB/s"


@dataclass(slots=True)
class Shared:
    """What so many nodes did, and machines by node; seconds of a copy beside it where there was one.

    ``seconds`` go from the order to the end of the run, as its record has it: not until somebody has read all of that.
    """

    nodes: int
    seconds: float = 0.0
    copy_s: float | None = None
    creates: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def share(folder: Path, machines: int, nodes: int, copy_mib: int = 0) -> Shared:
    """Fail ``machines`` over with so many recovery nodes; ``copy_mib``: copy a disk of that size meanwhile."""
    found = Shared(nodes)
    names = [f"beta-{number}" for number in range(nodes)]
    with House(folder, Fleet(machines, 1, depends_every=10**6), provider=_PROVIDER) as house:
        house.fill()
        for name in names:
            house.node(name, roles=("recovery",), limits={"machine": SLOTS})
        if copy_mib:
            _prepare_copy(house, folder, copy_mib)
        until(partial(house.online, *names), "the nodes answer")
        began = time.time()
        run_id = house.failover()
        copying = _copy(house) if copy_mib else None
        run = house.ended(run_id, _PATIENCE_S)
        found.seconds = datetime.fromisoformat(run["ended_at"]).timestamp() - began
        found.copy_s = _copied(house, copying) if copying else None
        verdict = house.verdict()
        found.wrong = [*verdict.wrong, *house.wrong(run)]
        if run["state"] != "succeeded":
            found.wrong.append(f"the run ended {run['state']}")
        found.creates = house.by_caller("create")
    return found


def copy_alone(folder: Path, mib: int) -> float:
    """Return the seconds of the same copy with nothing beside it."""
    with House(folder, Fleet(1, 1), provider=_PROVIDER) as house:
        house.fill()
        _prepare_copy(house, folder, mib)
        return _copied(house, _copy(house))


def _prepare_copy(house: House, folder: Path, mib: int) -> None:
    """Give the source site a machine with a full disk, both sites a replication node, and a plan of its own."""
    machine = FileMachine.create(folder / SOURCE, "src-big", {"vda": mib * MIB}, name="big")
    noise = random.Random(1)  # noqa: S311 - content
    for at in range(mib):
        machine.write("vda", at * MIB, noise.randbytes(MIB))
    facts = [machine.facts.model_dump(mode="json")]
    house.account("set", site=SOURCE, machines=facts)
    house.node("copy-alpha", SOURCE, roles=("replication",))
    house.node("copy-beta", TARGET, roles=("replication",))
    until(lambda: any(one["name"] == "big" for one in house.get(f"/machines?site={SOURCE}")["items"]), "the machine")
    plan: dict[str, Any] = {
        "name": "copy",
        "source_site": SOURCE,
        "target_site": TARGET,
        "rpo": "30d",
        "machines": [{"name": "big"}],
        "transport": {"bandwidth": {"limit": _COPY_RATE}},
    }
    house.put("/plans/copy", {"definition": plan})


def _copy(house: House) -> str:
    house.post("/plans/copy:protect", {"state": "protected"})
    return "copy"


def _copied(house: House, plan: str) -> float:
    """Wait for the copy's end and return its seconds."""

    def done() -> Any:
        return next((one for one in house.get(f"/plans/{plan}")["cycles"] if one["stats"]), None)

    return float(until(done, "the copy ends", _PATIENCE_S, 0.5)["stats"]["seconds"])
