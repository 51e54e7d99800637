"""The order of start: dependencies first, groups one after the other, nothing forgotten."""

from __future__ import annotations

from farshore.recovery.plan import Member, Order, State
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Machines m0, m1 ... that depend on earlier ones only, in groups that grow."""
    count = draw(st.integers(1, 12))
    members, group = [], 0
    critical = {0: draw(st.booleans())}
    for index in range(count):
        if draw(st.booleans()):
            group += 1
            critical[group] = draw(st.booleans())
        chosen = st.sets(st.integers(0, index - 1), max_size=3) if index else st.just(set[int]())
        depends_on = tuple(f"m{other}" for other in sorted(draw(chosen)))
        members.append(Member(f"m{index}", group, critical[group], depends_on))
    return Order(tuple(members))


@settings(max_examples=200)
@given(orders())
def test_waves_hold_everyone_once_after_what_they_depend_on(order: Order) -> None:
    waves = order.waves()
    flat = [name for wave in waves for name in wave]
    assert sorted(flat) == sorted(member.name for member in order.members)
    for member in order.members:
        for other in member.depends_on:
            assert flat.index(other) < flat.index(member.name)
    groups = {member.name: member.group for member in order.members}
    assert [groups[name] for name in flat] == sorted(groups[name] for name in flat)


@settings(max_examples=200)
@given(orders(), st.data())
def test_a_run_always_settles_and_starts_nothing_it_must_not(order: Order, data: st.DataObject) -> None:
    states: dict[str, State] = {member.name: "pending" for member in order.members}
    by_name = {member.name: member for member in order.members}
    while not order.settled(states):
        ready = order.ready(states)
        for name in ready:
            assert all(states[other] == "green" for other in by_name[name].depends_on)
            assert order.halted(states) is None
            states[name] = "starting"
        starting = [name for name in states if states[name] == "starting"]
        blocked = order.blocked(states)
        assert starting or blocked, states
        states.update(dict.fromkeys(blocked, "skipped"))
        if starting:
            name = data.draw(st.sampled_from(starting))
            states[name] = data.draw(st.sampled_from(("green", "failed")))
    if order.halted(states) is None:
        for member in order.members:
            if states[member.name] == "skipped":
                assert any(states[other] in {"failed", "skipped"} for other in member.depends_on)
