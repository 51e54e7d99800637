from collections.abc import Sequence
from typing import cast

import pytest
from farshore.errors import Conflict, Fenced, NotFound, Permanent, Retry
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts, Power
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec
from farshore.platforms.contract import Boots, Compute, Target
from farshore.recovery.steps import instantiate, power, sweep


def shown(*sizes: int, nics: int = 1) -> MachineFacts:
    """Return a machine as its platform shows it."""
    disks = tuple(DiskFacts(disk_id=f"sd{number}", size_bytes=size) for number, size in enumerate(sizes))
    macs = tuple(NicFacts(mac=f"52:54:00:00:00:{number:02x}", network="lan") for number in range(nics))
    return MachineFacts(machine_id="id-1", name="db-drill", disks=disks, nics=macs)


#: What :func:`spec` orders: one disk is rounded up, the platform has names of its own.
WHOLE = shown(8 << 20, 4 << 20)


class Machines:
    """A hypervisor in a few lines: what was asked of it, in order, and how its machines react."""

    def __init__(self, state: Power = "on", *, obeys: bool = True, lags: int = 0, keeps_fence: bool = True) -> None:
        self.state: Power = state
        self.obeys = obeys
        self.lags = lags
        self.keeps_fence = keeps_fence
        self.asked: list[str] = []
        self.stuck: Sequence[str] = ()
        #: What is shown of a machine that was made; None: nothing yet.
        self.shown: MachineFacts | None = WHOLE

    def power(self, _machine_id: str) -> Power:
        if self.lags and self.state == "off":
            self.lags -= 1
            return "on"
        return self.state

    def start(self, _machine_id: str) -> None:
        self.asked.append("start")
        if "fenced" in self.asked:
            raise Fenced("fenced")
        self.state = "on" if self.obeys else "off"

    def stop(self, _machine_id: str, timeout_s: float) -> bool:
        self.asked.append(f"stop {timeout_s:g}")
        if self.obeys:
            self.state = "off"
        return self.obeys

    def power_off(self, _machine_id: str) -> None:
        self.asked.append("power_off")
        self.state = "off"

    def fence(self, _machine_id: str, epoch: int) -> bool:
        self.asked.append(f"fence {epoch}")
        return self.keeps_fence

    def unfence(self, _machine_id: str) -> None:
        self.asked.append("unfence")

    def create(self, spec: MachineCreateParams) -> str:
        self.asked.append(f"create {spec.name}")
        return "id-1"

    def facts(self, machine_id: str) -> MachineFacts:
        if self.shown is None:
            raise NotFound(f"there is no {machine_id}")
        return self.shown

    def isolated_network(self, spec: NetworkCreateParams) -> None:
        self.asked.append(f"network {spec.name}")

    def sweep(self, tag: str) -> tuple[list[str], list[str]]:
        self.asked.append(f"sweep {tag}")
        return ["vm"], list(self.stuck)


class Pool:
    def __init__(self, *points: str) -> None:
        self.points = set(points)
        self.asked: list[str] = []

    def has(self, point: str) -> bool:
        return point in self.points

    def lease(self, point: str, tag: str) -> None:
        self.asked.append(f"lease {point} {tag}")

    def release(self, tag: str) -> None:
        self.asked.append(f"release {tag}")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def stop(machines: Machines, policy: str = "abort"):
    clock = Clock()
    return power.stop(
        cast("Compute", machines),
        "vm",
        30,
        policy,  # type: ignore[arg-type]
        clock=clock,
        wait=clock.wait,
    )


def start(machines: Machines, boots: Boots | None = None):
    clock = Clock()
    return power.start(cast("Compute", machines), "vm", boots, clock=clock, wait=clock.wait)


def test_a_machine_that_is_off_is_not_asked():
    machines = Machines("off")
    assert stop(machines).power == "off"
    assert machines.asked == []


def test_a_clean_stop_is_read_back():
    machines = Machines(lags=3)
    result = stop(machines)
    assert (result.power, result.detail) == ("off", "shut down cleanly")
    assert machines.lags == 0


def test_a_machine_that_does_not_stop_is_left_alone_by_policy():
    machines = Machines(obeys=False)
    with pytest.raises(Conflict) as caught:
        stop(machines)
    assert caught.value.code == "stop-timeout"
    assert machines.asked == ["stop 30"]
    assert machines.state == "on"


def test_a_machine_that_does_not_stop_is_powered_off_by_policy():
    machines = Machines(obeys=False)
    result = stop(machines, "power_off")
    assert machines.asked == ["stop 30", "power_off"]
    assert "powered off" in result.detail


def test_a_machine_that_stays_on_the_books_is_no_success():
    with pytest.raises(Retry) as caught:
        stop(Machines(lags=10_000))
    assert caught.value.code == "not-verified-off"


def test_start_twice_is_start_once():
    machines = Machines("off")
    for _ in range(2):
        assert start(machines).power == "on"
    assert machines.asked == ["start"]


def test_a_start_is_read_back():
    with pytest.raises(Retry):
        start(Machines("off", obeys=False))


def test_a_started_machine_is_waited_for_until_its_provider_says_that_it_has_booted():
    looks = iter([False, False, True])
    machines = Machines("off")
    assert start(machines, Boots(lambda _: next(looks), 1.0, 60.0)).power == "on"
    assert next(looks, None) is None
    with pytest.raises(Permanent) as caught:
        start(machines, Boots(lambda _: False, 1.0, 60.0))
    assert caught.value.code == "not-booted"
    assert machines.asked == ["start"]


def test_who_is_to_stop_does_not_wait_for_a_boot():
    asked: list[str] = []
    boots = Boots(lambda name: bool(asked.append(name)), 1.0, 60.0)
    found = power.start(cast("Compute", Machines("off")), "vm", boots, clock=lambda: 0.0, wait=lambda _: True)
    assert (found.power, asked) == ("on", ["vm"])


def test_a_fence_that_is_not_kept_is_an_error():
    assert power.fence(cast("Compute", Machines("off")), "vm", 2).fenced
    with pytest.raises(Permanent) as caught:
        power.fence(cast("Compute", Machines("off", keeps_fence=False)), "vm", 2)
    assert caught.value.code == "fence-not-kept"


def spec() -> MachineCreateParams:
    return MachineCreateParams(
        tag="run-1",
        purpose="drill",
        name="db-drill",
        facts=MachineFacts(machine_id="src", name="db"),
        cpus=1,
        memory_bytes=1 << 28,
        disks=(
            DiskSpec(disk_id="vda", point="p1", size_bytes=3 << 20),
            DiskSpec(disk_id="vdb", point="p2", size_bytes=8 << 20),
        ),
        nics=(NicSpec(mac="52:54:00:00:00:01", network="lan"),),
        epoch=1,
    )


def test_points_are_leased_before_a_machine_is_made():
    machines, pool = Machines(), Pool("p1", "p2")
    result = instantiate.machine(cast("Compute", machines), cast("Target", pool), spec())
    assert (result.machine_id, result.name) == ("id-1", "db-drill")
    assert pool.asked == ["lease p1 run-1", "lease p2 run-1"]
    assert machines.asked == ["create db-drill"]


@pytest.mark.parametrize(
    ("seen", "lacks"),
    [
        (None, "without anything"),
        (shown(8 << 20), "without 1 of its 2 disks"),
        (shown(8 << 20, 2 << 20), "without disks that are large enough"),
        (shown(8 << 20, 4 << 20, nics=0), "without 1 of its 1 network interfaces"),
        (shown(nics=0), "without 2 of its 2 disks and 1 of its 1 network interfaces"),
    ],
)
def test_a_machine_that_lacks_what_was_ordered_is_not_taken_for_made(seen: MachineFacts | None, lacks: str) -> None:
    machines = Machines()
    machines.shown = seen
    with pytest.raises(Retry, match=lacks) as caught:
        instantiate.machine(cast("Compute", machines), cast("Target", Pool("p1", "p2")), spec())
    assert caught.value.code == "machine-incomplete"


def test_nothing_is_made_when_a_point_is_gone():
    machines, pool = Machines(), Pool("p1")
    with pytest.raises(NotFound) as caught:
        instantiate.machine(cast("Compute", machines), cast("Target", pool), spec())
    assert caught.value.evidence == {"point": "p2", "disk_id": "vdb"}
    assert machines.asked == []
    assert pool.asked == []


def test_leases_are_given_back_when_nothing_is_left():
    machines, pool = Machines(), Pool()
    result = sweep.sweep(cast("Compute", machines), cast("Target", pool), "run-1")
    assert (result.removed, result.remaining) == (("vm",), ())
    assert pool.asked == ["release run-1"]


def test_leases_stay_while_something_is_left():
    machines, pool = Machines(), Pool()
    machines.stuck = ["disk"]
    assert sweep.sweep(cast("Compute", machines), cast("Target", pool), "run-1").remaining == ("disk",)
    assert pool.asked == []


def test_a_platform_without_machines_has_leases_only():
    pool = Pool()
    assert sweep.sweep(None, cast("Target", pool), "run-1").removed == ()
    assert pool.asked == ["release run-1"]


def test_a_machine_that_is_cut_is_proven_to_be_off():
    clock = Clock()
    machines = Machines("on", lags=2)
    power.cut(cast("Compute", machines), "vm", clock=clock, wait=clock.wait)
    assert machines.asked == ["power_off"]
    with pytest.raises(Retry) as caught:
        power.cut(cast("Compute", Machines("on", lags=1 << 30)), "vm", clock=clock, wait=clock.wait)
    assert caught.value.code == "not-verified-off"
