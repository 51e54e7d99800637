"""The order of start: dependencies first, groups one after the other, limits kept, nothing forgotten."""

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
    limit = st.none() | st.integers(1, 4)
    delays = draw(st.lists(st.sampled_from((0.0, 5.0)), min_size=group + 1, max_size=group + 1))
    names = tuple(f"g{index}" for index in range(group + 1))
    return Order(tuple(members), names, tuple(delays), draw(limit), draw(limit))


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_limits_and_delays_are_kept_and_keep_nothing_back_for_good(order: Order, data: st.DataObject) -> None:
    states: dict[str, State] = {member.name: "pending" for member in order.members}
    groups = {member.name: member.group for member in order.members}
    settled_at: dict[str, float] = {}
    now = 100.0
    while not order.settled(states):
        chosen, look_at = order.to_start(states, settled_at, now)
        assert set(chosen) <= set(order.ready(states))
        for name in chosen:
            before = [settled_at[other] for other, group in groups.items() if group < groups[name]]
            assert not before or now >= max(before) + order.delays[groups[name]]
            states[name] = "starting"
        starting = [name for name in states if states[name] == "starting"]
        assert order.most_starting is None or len(starting) <= order.most_starting
        blocked = order.blocked(states)
        for name in blocked:
            states[name], settled_at[name] = "skipped", now
        assert starting or blocked or look_at is not None, states
        if look_at is not None:
            assert now < look_at <= now + 5.0
            now = look_at
        if starting:
            name = data.draw(st.sampled_from(starting))
            now += data.draw(st.sampled_from((0.5, 4.0)))
            states[name], settled_at[name] = data.draw(st.sampled_from(("green", "failed"))), now


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_machines_are_made_in_the_order_of_their_start_within_the_limit(order: Order, data: st.DataObject) -> None:
    flat = [member.name for member in order.members]
    waiting, making, made = set(flat), set[str](), list[str]()
    while waiting or making:
        chosen = order.to_make(waiting, len(making))
        assert chosen or making
        made += chosen
        waiting -= set(chosen)
        making |= set(chosen)
        assert order.most_made is None or len(making) <= order.most_made
        making.remove(data.draw(st.sampled_from(sorted(making))))
    assert made == flat


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_machines_are_made_while_others_start_and_the_run_settles(order: Order, data: st.DataObject) -> None:
    states: dict[str, State] = {member.name: "unmade" for member in order.members}
    while not order.settled(states):
        unmade = [name for name, state in states.items() if state == "unmade"]
        if order.halted(states) is None:
            chosen = order.to_make(unmade, sum(state == "making" for state in states.values()))
            states.update(dict.fromkeys(chosen, "making"))
        for name in order.ready(states):
            assert states[name] == "pending", "it is made"
            states[name] = "starting"
        blocked = order.blocked(states)
        assert all(states[name] in {"unmade", "pending"} for name in blocked), "nobody has them at work"
        states.update(dict.fromkeys(blocked, "skipped"))
        at_work = [name for name, state in states.items() if state in {"making", "starting"}]
        assert at_work or blocked, states
        if at_work:
            name = data.draw(st.sampled_from(at_work))
            good: State = "pending" if states[name] == "making" else "green"
            states[name] = data.draw(st.sampled_from((good, "failed")))
    if order.halted(states) is None:
        assert all(states[name] != "skipped" for name in states if "failed" not in states.values())


@settings(max_examples=200, deadline=None)
@given(orders(), st.data())
def test_a_part_of_a_plan_keeps_the_order_of_the_whole(order: Order, data: st.DataObject) -> None:
    names = [member.name for member in order.members]
    kept = data.draw(st.sets(st.sampled_from(names), min_size=1))
    part = [name for wave in order.only(kept).waves() for name in wave]
    assert sorted(part) == sorted(kept)
    for member in order.members:
        for other in member.depends_on:
            if {member.name, other} <= kept:
                assert part.index(other) < part.index(member.name)
