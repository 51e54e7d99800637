import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from farshore.errors import Fenced, Invalid, Permanent
from farshore.model.machine import MachineFacts, Power
from farshore.model.task import PARAMS, RESULTS, MachineCreateParams, Task, TaskKind
from farshore.node.marks import Marks
from farshore.node.tasks import HANDLERS, Site, execute, lane_of
from farshore.node.worker import Call, Cancelled, KeyedLocks
from farshore.platforms.contract import Compute
from farshore.platforms.file.machine import FileMachine
from farshore.platforms.registry import open_platform
from farshore.replication.flow import NodeWindow
from farshore.units import MIB

LONG_S = 20.0


class Machines:
    """A hypervisor in a few lines: powers, a fence, a console, and what was asked in order."""

    def __init__(self) -> None:
        self.powers: dict[str, Power] = {"vm": "on"}
        self.asked: list[str] = []
        self.creating = threading.Event()
        self.may_create = threading.Event()
        self.fence_fails = False

    def power(self, machine_id: str) -> Power:
        return self.powers[machine_id]

    def start(self, machine_id: str) -> None:
        self.asked.append("start")
        self.powers[machine_id] = "on"

    def stop(self, machine_id: str, _timeout_s: float) -> bool:
        self.powers[machine_id] = "off"
        return True

    def power_off(self, machine_id: str) -> None:
        self.asked.append("power_off")
        self.powers[machine_id] = "off"

    def fence(self, _machine_id: str, _epoch: int) -> bool:
        self.asked.append("fence")
        if self.fence_fails:
            raise Permanent("the hypervisor is away")
        return True

    def unfence(self, _machine_id: str) -> None:
        self.asked.append("unfence")
        if self.fence_fails:
            raise Permanent("the hypervisor is away")

    def create(self, spec: MachineCreateParams) -> str:
        self.creating.set()
        assert self.may_create.wait(LONG_S)
        self.asked.append(f"create {spec.name}")
        return "id-1"

    def facts(self, machine_id: str) -> MachineFacts:
        return MachineFacts(machine_id=machine_id, name="vm-drill")

    def sweep(self, tag: str) -> tuple[list[str], list[str]]:
        self.asked.append(f"sweep {tag}")
        return ["vm"], []

    def console(self, _machine_id: str, _tail_bytes: int = 0) -> str:
        return "ready\x1b[0m"

    def addresses(self, _machine_id: str) -> list[str]:
        return []


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def site(tmp_path: Path, machines: Machines) -> Site:
    FileMachine.create(tmp_path, "vm", {"vda": MIB})
    platform = open_platform({"type": "file", "root": str(tmp_path)})
    return Site(
        platform=replace(platform, compute=cast("Compute", machines)),
        links=cast("Any", None),
        window=NodeWindow(64 * MIB),
        journal_dir=tmp_path / "journal",
        marks=Marks(tmp_path / "marks.json"),
        locks=KeyedLocks(),
        grant_key=lambda: None,
    )


def call(kind: str, **params: Any) -> Call:
    return Call(
        Task.model_construct(task_id="t", kind=cast("TaskKind", kind), key="k", site="s", term=1, params=params)
    )


def run(site: Site, kind: str, **params: Any) -> dict[str, Any]:
    return execute(site, call(kind, **params))


def create_params() -> dict[str, Any]:
    return {
        "tag": "run-1",
        "purpose": "drill",
        "name": "vm-drill",
        "facts": {"machine_id": "vm", "name": "vm"},
        "cpus": 1,
        "memory_bytes": 1,
        "disks": [],
        "nics": [],
        "epoch": 1,
    }


def test_every_kind_has_a_handler_parameters_and_a_result():
    kinds = set(get_args(TaskKind))
    assert set(HANDLERS) == kinds
    assert set(PARAMS) == kinds
    assert set(RESULTS) == kinds


def test_fencing_never_queues_behind_probes():
    assert lane_of("machine-fence") != lane_of("machine-probe")


def test_parameters_are_checked_and_the_field_is_named(site: Site):
    with pytest.raises(Invalid) as caught:
        run(site, "machine-stop", machine_id="vm", timeout_s="soon", on_timeout="abort")
    assert caught.value.field == "params.timeout_s"


def test_an_unknown_kind_is_refused(site: Site):
    with pytest.raises(Invalid) as caught:
        run(site, "machine-teleport")
    assert caught.value.code == "task-kind-unknown"


def test_stop_then_start(site: Site):
    stopped = run(site, "machine-stop", machine_id="vm", timeout_s=1, on_timeout="abort")
    assert stopped["power"] == "off"
    assert run(site, "machine-start", machine_id="vm", epoch=1)["power"] == "on"


@pytest.mark.parametrize("kind", ["machine-start", "machine-power-on", "machine-unfence"])
def test_an_order_of_an_epoch_before_the_fence_is_refused(site: Site, machines: Machines, kind: str):
    assert run(site, "machine-fence", machine_id="vm", epoch=2)["fenced"]
    machines.powers["vm"] = "off"
    with pytest.raises(Fenced) as caught:
        run(site, kind, machine_id="vm", epoch=1)
    assert caught.value.code == "machine-fenced"
    assert machines.asked == ["fence"]


def test_a_fence_leaves_a_machine_on_unless_it_is_to_be_off(site: Site, machines: Machines):
    assert run(site, "machine-fence", machine_id="vm", epoch=2)["power"] == "on"
    result = run(site, "machine-fence", machine_id="vm", epoch=2, power_off=True)
    assert (result["power"], result["fenced"]) == ("off", True)
    assert machines.asked == ["fence", "fence", "power_off"]


def test_a_fenced_machine_is_not_read_until_a_later_epoch(site: Site):
    run(site, "machine-fence", machine_id="vm", epoch=2)
    for epoch in (1, 2):
        with pytest.raises(Fenced):
            run(site, "point", group_id="g", point_id="p", machine_ids=["vm"], epoch=epoch)
    point = run(site, "point", group_id="g", point_id="p", machine_ids=["vm"], epoch=3)
    assert point["disks"][0]["disk_key"] == "vm/vda"


def test_a_lifted_fence_lets_the_old_epoch_go_on(site: Site):
    run(site, "machine-fence", machine_id="vm", epoch=2)
    assert not run(site, "machine-unfence", machine_id="vm", epoch=2)["fenced"]
    run(site, "machine-start", machine_id="vm", epoch=1)


def test_the_mark_errs_towards_fenced(site: Site, machines: Machines):
    machines.fence_fails = True
    with pytest.raises(Permanent):
        run(site, "machine-fence", machine_id="vm", epoch=2)
    assert site.marks.epoch("vm") == 2
    with pytest.raises(Permanent):
        run(site, "machine-unfence", machine_id="vm", epoch=2)
    assert site.marks.epoch("vm") == 2


def test_a_sweep_awaits_what_is_being_made_with_its_tag(site: Site, machines: Machines):
    results: list[dict[str, Any]] = []

    def background(work: Callable[[], dict[str, Any]]) -> threading.Thread:
        thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
        thread.start()
        return thread

    creating = background(lambda: run(site, "machine-create", **create_params()))
    assert machines.creating.wait(LONG_S)
    sweeping = background(lambda: run(site, "sweep", tag="run-1"))
    run(site, "sweep", tag="run-2")
    machines.may_create.set()
    creating.join(LONG_S)
    sweeping.join(LONG_S)
    assert machines.asked == ["sweep run-2", "create vm-drill", "sweep run-1"]
    assert results == [
        {"machine_id": "id-1", "name": "vm-drill"},
        {"removed": ["vm"], "remaining": []},
    ]


def test_a_probe_tells_what_it_saw_and_the_console(site: Site):
    probe = {"type": "console", "contains": "ready"}
    result = run(site, "machine-probe", machine_id="vm", probes=[probe])
    assert result["green"]
    assert result["console"] == "ready\ufffd[0m"


def test_a_cancelled_probe_is_no_verdict(site: Site):
    cancelled = call("machine-probe", machine_id="vm", probes=[{"type": "console", "contains": "never"}])
    cancelled.cancel.set()
    with pytest.raises(Cancelled):
        execute(site, cancelled)


def test_a_checkpoint_that_is_gone_is_dropped(site: Site):
    assert run(site, "drop-checkpoint", group_id="g", checkpoint_id="cp-none") == {}


def test_release_and_untrack_of_what_is_gone_are_no_errors(site: Site):
    run(site, "release", group_id="g", point_id="p-none", machine_ids=["vm"], applied=False)
    run(site, "machine-untrack", machine_id="vm")


def test_an_inventory_holds_the_machine(site: Site):
    assert [machine["machine_id"] for machine in run(site, "inventory")["machines"]] == ["vm"]


def test_what_was_taken_from_a_machine_is_told(site: Site):
    run(site, "point", group_id="g", point_id="pt-1", machine_ids=["vm"], bases={})
    told = run(site, "machine-untrack", machine_id="vm")
    assert told["machine_id"] == "vm"
    assert told["removed"]
    assert told["remaining"] == []
    assert run(site, "machine-untrack", machine_id="vm")["removed"] == []
    assert run(site, "machine-untrack", machine_id="gone")["remaining"] == []
