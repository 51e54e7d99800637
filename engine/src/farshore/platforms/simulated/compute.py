"""Machines of a simulated provider. Each method is one call to it, so that calls can be counted and paced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from farshore.errors import NotFound, Permanent
from farshore.model.machine import Finding, Inventory, MachineFacts, NetworkFacts, PoolFacts, Power
from farshore.model.task import DetachResult, IsolationResult, MachineCreateParams, NetworkCreateParams
from farshore.platforms.contract import Caps, OpenDisk
from farshore.platforms.simulated.api import Api


class SimulatedCompute:
    """The contract's ``Compute`` over an account."""

    caps = Caps()

    def __init__(self, api: Api, usage: Callable[[], PoolFacts]) -> None:
        self._api = api
        self._usage = usage

    def inventory(self) -> Inventory:
        """Return what the account holds, what it may do, and what of that is left."""
        found = self._api.call("inventory")
        return Inventory.model_validate(
            {
                "platform": "simulated",
                "machines": found["machines"],
                "networks": [NetworkFacts(name=item["name"]) for item in found["networks"]],
                "pool": self._usage(),
                "limits": {key: found["limits"][key] for key in ("creates", "starts", "calls_per_s")},
                "quota": {
                    "machines": found["limits"]["machines"],
                    "machines_used": found["used"]["machines"],
                    "cpus": found["limits"]["cpus"],
                    "cpus_used": found["used"]["cpus"],
                },
            }
        )

    def facts(self, machine_id: str) -> MachineFacts:
        """Return one machine."""
        return MachineFacts.model_validate(self._api.call("facts", machine_id=machine_id))

    def check(self) -> list[Finding]:
        """Say that nothing here is real."""
        self._api.call("inventory")
        return [Finding(code="simulated", severity="warning", message="this site is simulated; nothing in it is real")]

    def create(self, spec: MachineCreateParams) -> str:
        """Make a machine, powered off; the same tag and name find it again."""
        facts: dict[str, Any] = spec.facts.model_dump(mode="json", exclude={"findings", "tags", "power"})
        facts |= {"cpus": spec.cpus, "memory_bytes": spec.memory_bytes}
        facts["nics"] = [
            {"mac": nic.mac, "network": nic.network, "addresses": [nic.address] if nic.address else []}
            for nic in spec.nics
        ]
        return str(self._api.call("create", key=f"{spec.tag}/{spec.name}", name=spec.name, tag=spec.tag, facts=facts))

    def isolated_network(self, spec: NetworkCreateParams) -> None:
        """Make a network."""
        self._api.call("network", name=spec.name, tag=spec.tag, subnet=spec.subnet)

    def start(self, machine_id: str) -> None:
        """Power on."""
        self._api.call("start", machine_id=machine_id)

    def stop(self, machine_id: str, timeout_s: float) -> bool:
        """Shut down; guests here always do."""
        return bool(self._api.call("stop", machine_id=machine_id, timeout_s=timeout_s))

    def power_off(self, machine_id: str) -> None:
        """Cut the power."""
        self._api.call("power-off", machine_id=machine_id)

    def power(self, machine_id: str) -> Power:
        """Return the state."""
        power: Power = self._api.call("power", machine_id=machine_id)
        return power

    def fence(self, machine_id: str, epoch: int) -> bool:
        """Keep the machine from starting."""
        return bool(self._api.call("fence", machine_id=machine_id, epoch=epoch))

    def unfence(self, machine_id: str) -> None:
        """Lift the fence."""
        self._api.call("unfence", machine_id=machine_id)

    def detach(self, machine_id: str) -> DetachResult:
        """Say that machines here need no checkpoint."""
        return DetachResult(machine_id=machine_id, state="done")

    def addresses(self, machine_id: str) -> list[str]:
        """Return the machine's addresses; nobody answers there."""
        return [str(address) for address in self._api.call("addresses", machine_id=machine_id)]

    def console(self, machine_id: str, tail_bytes: int = 16384) -> str:
        """Return the end of the console's text."""
        return str(self._api.call("console", machine_id=machine_id))[-tail_bytes:]

    def screen(self, machine_id: str) -> bytes:
        """Say that there are no screens here."""
        raise NotFound(f"machine {machine_id} has no screen", code="no-screen")

    def agent(self, machine_id: str, request: Mapping[str, Any], timeout_s: float) -> Any:  # noqa: ARG002
        """Say that there are no agents here."""
        raise Permanent(f"machine {machine_id} has no guest agent", code="no-agent", asked=request.get("execute"))

    def isolation(self, tag: str, networks: Sequence[str], *, canaries: bool) -> IsolationResult:  # noqa: ARG002
        """Say that nothing gets out of networks that do not exist."""
        return IsolationResult(proven=True, reason=f"simulated: {len(networks)} networks of {tag}")

    @contextmanager
    def open_disks(self, machine_id: str) -> Iterator[tuple[OpenDisk, ...]]:
        """Open nothing: guests here have no files."""
        self.power(machine_id)
        yield ()

    def sweep(self, tag: str) -> tuple[list[str], list[str]]:
        """Remove what carries ``tag``."""
        found = self._api.call("sweep", tag=tag)
        return list(found["removed"]), list(found["remaining"])
