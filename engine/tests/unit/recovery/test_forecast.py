"""Forecasts of how long a recovery takes: what each step took before, along the longest way through the order."""

from __future__ import annotations

from farshore.model.plan import Plan
from farshore.recovery.forecast import DEFAULTS, History, Time, forecast
from farshore.recovery.plan import Order
from hypothesis import given
from hypothesis import strategies as st

#: create, power on, validate of each machine.
TOOK = {"db": (4, 1, 30), "cache": (4, 1, 5), "web": (6, 1, 10)}


def plan(**changes: object) -> Plan:
    machines = [{"name": "db"}, {"name": "cache"}, {"name": "web", "depends_on": ["db"]}]
    return Plan.model_validate(
        {"name": "shop", "source_site": "a", "target_site": "b", "machines": machines, **changes}
    )


def history(names: tuple[str, ...] = tuple(TOOK)) -> History:
    steps = ("create", "power on", "validate")
    return History({(step, name): [TOOK[name][at]] for name in names for at, step in enumerate(steps)})


def steps(path: tuple[Time, ...]) -> list[str]:
    return [f"{time.step} {time.machine}".strip() for time in path]


def test_the_longest_way_is_told_step_by_step() -> None:
    found = forecast(Order.of(plan()), history(), prepared=False)
    # All are made at once (6), then db (31), then web, which needs it (11); cache is long up.
    assert found.seconds == 6 + 31 + 11
    assert found.ready_s == {"cache": 12, "db": 37, "web": 48}
    assert steps(found.path) == [
        *("create web", "power on db", "validate db"),
        *("power on web", "validate web"),
    ]
    assert (found.basis, found.samples) == ("machine", 1)


def test_limits_and_delays_make_it_longer() -> None:
    limited = plan(limits={"create": 1, "start": 1})
    assert forecast(Order.of(limited), history(), prepared=False).seconds == 14 + 31 + 6 + 11
    groups = [{"name": "data", "machines": ["db", "cache"]}, {"name": "front", "machines": ["web"], "delay": "1m"}]
    found = forecast(Order.of(plan(boot_groups=groups)), history(), prepared=False)
    assert found.seconds == 6 + 31 + 60 + 11
    assert "delay web" in steps(found.path)


def test_a_planned_one_begins_with_what_is_done_at_the_source() -> None:
    known = History({("sync", ""): [20.0], ("stop", "db"): [9.0], ("stop", "web"): [3.0], ("stop", "cache"): [1.0]})
    found = forecast(
        Order.of(plan()), known, ("sync", "stop", "final sync", "fence"), [["web"], ["db", "cache"]], prepared=False
    )
    assert steps(found.path)[:5] == ["sync", "stop web", "stop db", "final sync", "fence"]
    assert found.basis == "default"  # nothing is known of the machines' own steps
    assert found.path[3].seconds == DEFAULTS["final sync"]


def test_a_machine_without_a_past_is_taken_for_one_of_the_plan() -> None:
    found = forecast(Order.of(plan()), history(("db", "cache")), prepared=False)
    assert found.basis == "plan"
    # Of db and cache: 4 to create, 1 to power on, 17.5 to validate.
    assert [(time.step, time.seconds, time.basis) for time in found.path if time.machine == "web"] == [
        ("power on", 1, "plan"),
        ("validate", 17.5, "plan"),
    ]
    assert History({("create", "db"): [9, 1, 1, 1, 1, 100, 100]}).time("create", "db").seconds == 1  # the newest five


@given(
    st.dictionaries(st.sampled_from(["db", "cache", "web"]), st.floats(0, 1000), min_size=1),
    st.sampled_from(["db", "cache", "web"]),
    st.floats(0, 1000),
)
def test_no_step_that_takes_longer_makes_it_shorter(took: dict[str, float], slower: str, by: float) -> None:
    times = {("validate", name): [seconds] for name, seconds in took.items()}
    before = forecast(
        Order.of(plan()), History({**times, ("validate", slower): [took.get(slower, 5.0)]}), prepared=False
    )
    longer = {**times, ("validate", slower): [took.get(slower, 5.0) + by]}
    after = forecast(Order.of(plan()), History(longer), prepared=False)
    # Machines of which nothing is known take after those of the plan, so all times are given here.
    if len(longer) == 3:
        assert after.seconds >= before.seconds - 1e-6
    assert sum(time.seconds for time in after.path) <= after.seconds + 1e-2
