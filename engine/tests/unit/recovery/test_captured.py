"""Settings that came with a checkpoint, against those of the plan now."""

from __future__ import annotations

from typing import Any

import pytest
from doubles.manifests import a_manifest
from farshore.errors import Permanent
from farshore.model.plan import Plan
from farshore.recovery.captured import differences, effective
from farshore.recovery.preview import Choice


def plan(**changes: Any) -> Plan:
    base: dict[str, Any] = {
        "name": "shop",
        "source_site": "alpha",
        "target_site": "beta",
        "machines": [
            {"name": "db", "recovery": {"addresses": {"failover": "10.8.0.10"}, "cpus": 4}},
            {"name": "web", "depends_on": ["db"], "probes": [{"type": "http", "contains": "hello"}]},
        ],
        "boot_groups": [{"name": "data", "machines": ["db"]}, {"name": "front", "machines": ["web"]}],
        "networks": [{"source": "lan", "drill": {"subnet": "10.9.0.0/24"}, "failover": "dmz"}],
    }
    return Plan.model_validate(base | changes)


def choice(name: str, settings: Plan | dict[str, Any] | None, taken_at: float = 1.0) -> Choice:
    dumped = settings.model_dump(mode="json") if isinstance(settings, Plan) else settings
    manifest = a_manifest(
        checkpoint_id=f"cp-{name}",
        ordered_at=taken_at,
        taken_at=taken_at,
        settings={"plan": dumped} if dumped is not None else {},
    )
    return Choice(name, f"id-{name}", manifest)


def both(settings: Plan) -> list[Choice]:
    return [choice("db", settings), choice("web", settings, 2.0)]


def test_nothing_differs_where_nothing_was_changed() -> None:
    assert effective(plan(), both(plan())) == plan()
    assert differences(plan(), plan()) == []


def test_addresses_sizes_groups_probes_and_networks_are_those_of_then_all_else_is_of_now() -> None:
    then = plan()
    now = plan(
        machines=[
            {"name": "db", "recovery": {"addresses": {"failover": "10.8.0.99"}, "cpus": 8}},
            {"name": "web"},
        ],
        boot_groups=[{"name": "all", "machines": ["web", "db"]}],
        networks=[{"source": "lan", "drill": {"subnet": "10.9.0.0/24"}, "failover": "other"}],
        rpo="1h",
        commit="manual",
    )
    found = effective(now, both(then))
    assert found == plan(rpo="1h", commit="manual")
    assert {one.key: (one.current, one.captured) for one in differences(now, found)} == {
        "boot_groups": (["all: web, db"], ["data: db", "front: web"]),
        "machines.db.recovery.addresses.failover": ("10.8.0.99", "10.8.0.10"),
        "machines.db.recovery.cpus": (8, 4),
        "machines.web.depends_on": ([], ["db"]),
        "machines.web.probes": ([], then.model_dump(mode="json")["machines"][1]["probes"]),
        "networks.lan.failover": ("other", "dmz"),
    }


def test_each_machine_has_the_settings_of_its_own_checkpoint() -> None:
    older = plan(machines=[{"name": "db", "recovery": {"cpus": 2}}, {"name": "web", "recovery": {"cpus": 3}}])
    found = effective(plan(), [choice("db", older), choice("web", plan(), 2.0)])
    assert [machine.recovery.cpus for machine in found.machines] == [2, None]


def test_a_machine_that_joined_since_keeps_its_settings_and_comes_in_its_group() -> None:
    machines = [{"name": "db"}, {"name": "web"}, {"name": "mail", "recovery": {"cpus": 2}}]
    groups = [{"name": "data", "machines": ["db", "mail"]}, {"name": "front", "machines": ["web"]}]
    now = plan(machines=machines, boot_groups=groups)
    found = effective(now, [*both(plan()), choice("mail", plan())])
    assert [(group.name, group.machines) for group in found.groups()] == [
        ("data", ("db", "mail")),
        ("front", ("web",)),
    ]
    assert found.machine("mail").recovery.cpus == 2
    assert found.machine("db").recovery.cpus == 4


def test_a_machine_that_left_since_is_in_no_group_and_nobody_waits_for_it() -> None:
    now = plan(machines=[{"name": "web"}], boot_groups=[])
    found = effective(now, [choice("web", plan())])
    assert [(group.name, group.machines) for group in found.groups()] == [("front", ("web",))]
    assert found.machine("web").depends_on == ()


@pytest.mark.parametrize(
    ("settings", "code"),
    [(None, "captured-missing"), (plan(target_site="gamma"), "captured-elsewhere")],
)
def test_settings_that_cannot_be_used_are_refused_with_a_way_out(settings: Plan | None, code: str) -> None:
    with pytest.raises(Permanent) as caught:
        effective(plan(), [choice("db", settings)])
    assert (caught.value.code, caught.value.field) == (code, "recovery_settings")
    assert "recovery_settings: current" in caught.value.hint


def test_settings_that_do_not_hold_together_any_more_are_refused() -> None:
    then = plan().model_dump(mode="json")
    then["machines"][0]["recovery"]["cpus"] = 0
    with pytest.raises(Permanent) as caught:
        effective(plan(), [choice("db", then), choice("web", then, 2.0)])
    assert caught.value.code == "captured-invalid"
