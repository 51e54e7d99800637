"""How exactly a limit of bandwidth is kept: of a plan, of a link that two nodes share, and after an edit.

A real control plane and three real nodes in a network namespace whose loopback is theirs alone: the kernel's counter of
what crosses it is the measure, with all headers, all that is asked for and the control plane's own traffic in it. The
bound is on the worst of all spans of ten seconds, above or below the limit. Afterwards the limits are lifted and the
copies compared.

    python -m benchmarks.limited FOLDER SHORT     # in the namespace; prints what it found as JSON
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import requests
import yaml
from farshore.platforms.file.machine import FileMachine
from farshore.platforms.registry import open_platform

from benchmarks.ceiling import worst_share
from benchmarks.images import Full
from benchmarks.links import Loopback
from benchmarks.lost import until
from benchmarks.peers.base import environment, python
from benchmarks.peers.keys import farshore
from benchmarks.processes import ProgramFailed, Running, ask
from benchmarks.results import Check, Figure
from benchmarks.workshop import Workshop

MIB: Final = 1 << 20
SPAN_S: Final = 10.0
_TARGETS: Final = ("beta-1", "beta-2")
_PORT, _NODE_PORT = 8443, 8444
_POLL_S: Final = 1
#: MiB each second, and how long each is looked at.
PLAN_LIMIT: Final = 16
LINK_LIMIT: Final = 24
EDITED_LIMIT: Final = 10
_PHASE_S: Final = {"full": 20.0, "quick": 15.0}
#: Until a limit that was set has reached the nodes; and until connections that ran at another rate have emptied.
_SETTLE_S: Final = 3.0


class Counter:
    """Samples of what has crossed the loopback: ``[seconds, bytes]``. Use as a context manager."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def rate(self, span_s: float) -> float:
        """Return the bytes per second of the last ``span_s`` seconds."""
        last = self.samples[-1]
        first = next(one for one in reversed(self.samples) if one is self.samples[0] or one[0] <= last[0] - span_s)
        return (last[1] - first[1]) / max(span_s, last[0] - first[0])

    def since(self, moment: float) -> list[tuple[float, int]]:
        """Return the samples from a moment (monotonic) on."""
        return [one for one in self.samples if one[0] >= moment]

    def _look(self) -> None:
        while True:
            lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()
            row = next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()
            self.samples.append((time.monotonic(), int(row[8])))
            if self._over.wait(0.1):
                return


class House:
    """The control plane, one node of alpha, two of beta, and two machines each in a plan of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._home = folder / "home"
        self.nodes: dict[str, Running] = {}
        ports = ("--port", str(_PORT), "--node-port", str(_NODE_PORT))
        up = [farshore(), "up", "--home", str(self._home), *ports, "--foreground"]
        self._control = stack.enter_context(Running(up, folder / "control.log", env=environment()))
        until(self._answers, "the control plane answers")
        for site in ("alpha", "beta"):
            self.ok("PUT", f"/sites/{site}", {"platform": "file"})
        for place, name in enumerate(("alpha-1", *_TARGETS)):
            self._node(name, 9101 + place)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the control plane, and return its answer."""
        lines = (self._home / "farshore.env").read_text().splitlines()
        token = dict(line.split("=", 1) for line in lines)["FARSHORE_TOKEN"]
        answer = requests.request(
            method,
            f"https://127.0.0.1:{_PORT}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            verify=str(self._home / "ca.pem"),
            timeout=90,
        )
        if not answer.ok:
            raise ProgramFailed(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def limit(self, mib_per_s: int | None) -> None:
        """Set or lift the limit of the link."""
        text = "unlimited" if mib_per_s is None else f"{mib_per_s} MiB/s"
        self.ok("PUT", "/site-links/alpha/beta", {"bandwidth": text})

    def plan(self, name: str, bandwidth: str) -> None:
        """Write the plan of the machine of that name."""
        definition = {
            "name": name,
            "source_site": "alpha",
            "target_site": "beta",
            "rpo": "4h",
            "machines": [{"name": name}],
            "transport": {"bandwidth": bandwidth},
        }
        self.ok("PUT", f"/plans/{name}", {"definition": definition})

    def protect(self, name: str) -> None:
        """Begin with the first copy of a plan."""
        self.ok("POST", f"/plans/{name}:protect", {"state": "protected"})

    def holders(self) -> set[str]:
        """Return the nodes that have a share of the link's limit."""
        return {share["node"] for share in self.ok("GET", "/site-links/alpha/beta")["shares"]}

    def is_protected(self, name: str) -> bool:
        """Say whether a plan has its first checkpoint."""
        return bool(self.ok("GET", f"/plans/{name}")["state"] == "protected")

    def different(self, name: str) -> int:
        """Return how many MiB of a machine's newest checkpoint differ from its image."""
        target = open_platform({"type": "file", "root": self._folder / "beta"}).target
        disk = self.ok("GET", f"/checkpoints?plan={name}")["items"][0]["disks"][0]
        found, wrong = bytearray(MIB), 0
        with FileMachine(self._folder / "alpha", name).image("vda").open("rb") as image:
            for at in range(0, disk["size_bytes"], MIB):
                target.read_into(disk["point"], at, memoryview(found))
                wrong += image.read(MIB) != found
        return wrong

    def _answers(self) -> bool:
        if not self._control.runs():
            raise ProgramFailed(f"the control plane ended: {self._control.said()}")
        try:
            self.ok("GET", "/sites")
        except (OSError, KeyError, ProgramFailed):
            return False
        return True

    def _node(self, name: str, port: int) -> None:
        site = name.partition("-")[0]
        data = f"127.0.0.1:{port}"
        self.ok("PUT", f"/nodes/{name}", {"site": site, "data_address": data})
        config, token = self._folder / f"{name}.yml", self._folder / f"{name}.token"
        settings = {
            "name": name,
            "site": site,
            "control_url": f"https://127.0.0.1:{_NODE_PORT}",
            "state_dir": str(self._folder / f"{name}.state"),
            "data_listen": data,
            "poll_wait": f"{_POLL_S}s",
            "platform": {"type": "file", "root": str(self._folder / site)},
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        token.write_text(self.ok("POST", f"/nodes/{name}:token")["token"], encoding="utf-8")
        ca = str(self._home / "ca.pem")
        enrol = [farshore(), "node", "enrol", "--config", str(config), "--token-file", str(token), "--ca-file", ca]
        ask(enrol)
        run = python("farshore.node", "--config", str(config))
        self.nodes[name] = self._stack.enter_context(Running(run, self._folder / f"{name}.log", env=environment()))
        until(lambda: self.ok("GET", f"/nodes/{name}")["state"] == "online", f"{name} is online")


def play(folder: Path, phase_s: float) -> dict[str, Any]:
    """Run the three phases and return what was seen."""
    with ExitStack() as stack:
        house = House(folder, stack)
        until(lambda: len(house.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
        house.limit(1024)
        house.plan("first", f"{PLAN_LIMIT} MiB/s")
        house.plan("second", "unlimited")
        counter = stack.enter_context(Counter())
        phases: dict[str, Any] = {}

        def look(name: str, limit: int) -> None:
            until(lambda: counter.rate(1.0) > limit * MIB / 2, f"data flow at the limit of the {name}")
            time.sleep(_SETTLE_S)
            begun = time.monotonic()
            time.sleep(phase_s)
            samples = counter.since(begun)
            least, most = worst_share(samples, limit * MIB, SPAN_S)
            mean = (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0]) / MIB
            phases[name] = {
                "limit_mib_per_s": limit,
                "mib_per_s": round(mean, 3),
                "least": least,
                "most": most,
            }

        house.protect("first")
        first = until(house.holders, "a node begins with the first plan")
        look("plan", PLAN_LIMIT)
        # Whoever asks first is given all that there is to do: the busy one is kept from asking for a moment.
        (busy,) = first
        os.kill(house.nodes[busy].pid, signal.SIGSTOP)
        time.sleep(2 * _POLL_S)
        house.protect("second")
        until(lambda: len(house.holders()) == len(_TARGETS), "the other node begins with the second plan")
        os.kill(house.nodes[busy].pid, signal.SIGCONT)
        house.limit(LINK_LIMIT)
        look("link of two nodes", LINK_LIMIT)
        phases["link of two nodes"]["holders"] = sorted(house.holders())
        house.limit(EDITED_LIMIT)
        look("link after an edit", EDITED_LIMIT)
        house.limit(None)
        house.plan("first", "unlimited")
        for name in ("first", "second"):
            until(partial(house.is_protected, name), f"the {name} plan is protected")
        return {"phases": phases, "different_mib": house.different("first") + house.different("second")}


def figure(shop: Workshop, size: Any) -> Figure:
    """Measure ``dp-limit``."""
    row, phase_s = Figure("dp-limit"), _PHASE_S[size.name]
    folder = shop.run / "limited"
    folder.mkdir()
    # Twice what the limits let through, for some of it is compressed: no copy may end before it is looked at.
    seconds = phase_s + 4 * _SETTLE_S
    needs = {"first": PLAN_LIMIT + LINK_LIMIT / 2 + EDITED_LIMIT / 2, "second": LINK_LIMIT / 2 + EDITED_LIMIT / 2}
    for number, (name, rate) in enumerate(needs.items()):
        image = shop.disk(Full(int(rate * seconds * 2) * MIB, seed=400 + number)).source
        machine = FileMachine.create(folder / "alpha", name, {"vda": image.stat().st_size})
        path = machine.image("vda")
        path.unlink()
        path.hardlink_to(image)  # nobody writes it
    shop.say(f"a control plane and three nodes; about {3 * (phase_s + _SETTLE_S) + 30:.0f} s")
    with Loopback() as place:
        command = python("benchmarks.limited", str(folder), str(phase_s))
        with Running(place.argv("target", command), folder / "figure.log", env=environment()) as run:
            run.wait(600)
        found: dict[str, Any] = json.loads((folder / "figure.log").read_text(encoding="utf-8"))
    for name, seen in found["phases"].items():
        worst = max(abs(seen["least"] - 1), abs(seen["most"] - 1))
        row.checks.append(Check(name, worst, "<=", 0.05, "off the limit, worst of all spans of 10 s"))
    holders = found["phases"]["link of two nodes"]["holders"]
    row.checks += [
        Check("nodes that share the link", len(holders), ">=", 2),
        Check("copies' differences", found["different_mib"], "<=", 0, "MiB"),
    ]
    row.details |= found
    return row


if __name__ == "__main__":
    print(json.dumps(play(Path(sys.argv[1]), float(sys.argv[2]))))  # noqa: T201
