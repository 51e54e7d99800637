"""A failover whose control plane is killed again and again, at points drawn over its steps."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from farshore.control.views.history import OPEN
from farshore.testing.simulated.house import SOURCE, Fleet, House, until

#: Steps of each machine in a planned failover: stop, fence, create, power on, validate.
_STEPS: Final = 5
_PATIENCE_S: Final = 1800.0


@dataclass(slots=True)
class Killed:
    """How a failover went. ``wrong`` is empty if all is as it should be; ``points`` are the steps at each kill."""

    seed: int
    state: str = ""
    points: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    calls: int = 0


def kill_through(folder: Path, machines: int, groups: int, kills: int, seed: int) -> Killed:
    """Fail ``machines`` over as planned, and kill the control plane ``kills`` times on the way."""
    found = Killed(seed)
    draw = random.Random(seed)  # noqa: S311 - drawn points, no secret
    total = machines * _STEPS
    points = sorted(draw.randrange(total) for _ in range(kills))
    with House(folder, Fleet(machines, groups, consistency="group"), seed=seed) as house:
        house.node("beta-1")
        house.seed()
        until(lambda: house.online("alpha-1", "beta-1"), "the nodes answer")
        began = time.monotonic()
        run_id = house.failover("planned")
        for point in points:
            until(partial(_reached, house, run_id, point), f"{point} steps have ended", _PATIENCE_S, 0.02)
            time.sleep(draw.uniform(0.0, 0.3))  # anywhere between two steps, also in the middle of a transaction
            if house.state(run_id) not in OPEN:
                break
            found.points.append(house.steps_ended(run_id))
            house.control.kill()
            time.sleep(draw.uniform(0.0, 1.0))
            house.control.start()
            until(house.answers, "the control plane answers")
        run = house.ended(run_id, _PATIENCE_S)
        found.seconds = round(time.monotonic() - began, 1)
        verdict = house.verdict()
        found.state, found.calls = str(run["state"]), verdict.calls
        found.wrong = [*verdict.wrong, *house.wrong(run), *_source(house), *_machines(run, machines)]
        if len(found.points) < kills:
            found.wrong.append(f"only {len(found.points)} of {kills} kills came before the end")
    return found


def _reached(house: House, run_id: str, point: int) -> bool:
    return house.steps_ended(run_id) >= point or house.state(run_id) not in OPEN


def _machines(run: dict[str, Any], count: int) -> list[str]:
    wrong = [f"{item['name']} is {item['state']}" for item in run["machines"] if item["state"] != "green"]
    return wrong + ([] if len(run["machines"]) == count else [f"the run has {len(run['machines'])} machines"])


def _source(house: House) -> list[str]:
    """Return which old primaries could still run."""
    machines = house.account("inventory", site=SOURCE)["machines"]
    return [f"{item['name']} is still on at {SOURCE}" for item in machines if item["power"] != "off"]
