"""Whatever happens in whatever order: never two primaries, and epochs only grow."""

from __future__ import annotations

from typing import get_args

from farshore.errors import Conflict
from farshore.recovery.states import Event, Machine, apply
from hypothesis import given, settings
from hypothesis import strategies as st

EVENTS = st.lists(st.sampled_from(get_args(Event)), max_size=60)
#: Weighted towards the order of a real failover, so that deep states are reached often.
ONWARD: list[Event] = ["reprotect", "copied", "begin", "stopped", "fenced", "raise-epoch", "created", "started"]
BACK: list[Event] = ["begin-rollback", "give-up", "roll-back", "unfenced", "restarted", "rolled-back"]
STORY: list[Event] = [
    "protect",
    "copied",
    "begin",
    "stopped",
    "fenced",
    "raise-epoch",
    "created",
    "started",
    "finish",
]


def _walk(events: list[Event]) -> list[tuple[Event, Machine, Machine]]:
    machine, taken = Machine(), []
    for event in events:
        try:
            after = apply(machine, event)
        except Conflict:
            continue
        taken.append((event, machine, after))
        machine = after
    return taken


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    """The planned story with other events strewn in and some of its own left out."""
    events: list[Event] = []
    for event in [*STORY, *draw(st.sampled_from([[], ONWARD, BACK, [*ONWARD, "finish", *BACK]]))]:
        events += draw(st.lists(st.sampled_from(get_args(Event)), max_size=3))
        if draw(st.integers(0, 9)):
            events.append(event)
    return events


@settings(max_examples=200, deadline=None)
@given(st.one_of(EVENTS, stories()))
def test_a_machine_has_one_primary_at_most(events: list[Event]) -> None:
    for _, _, machine in _walk(events):
        assert machine.primaries <= 1


@settings(max_examples=200, deadline=None)
@given(st.one_of(EVENTS, stories()))
def test_the_target_runs_only_after_the_source_was_fenced_or_given_up_by_force(events: list[Event]) -> None:
    forced = False
    for event, _, machine in _walk(events):
        forced = event == "force-epoch" or (forced and machine.raised)
        if machine.target in {"created", "running"}:
            assert machine.raised
            assert machine.epoch >= 2
            assert machine.source == "fenced" or forced


@settings(max_examples=200, deadline=None)
@given(st.one_of(EVENTS, stories()))
def test_epochs_grow_by_one_and_only_when_raised(events: list[Event]) -> None:
    for event, before, after in _walk(events):
        assert after.epoch == before.epoch + (event in {"raise-epoch", "force-epoch", "roll-back"})


@settings(max_examples=200, deadline=None)
@given(st.one_of(EVENTS, stories()))
def test_after_the_epoch_nothing_leads_the_source_back_but_a_rollback_or_the_other_direction(
    events: list[Event],
) -> None:
    for event, before, after in _walk(events):
        if event == "roll-back":
            assert before.target in {"absent", "fenced", "stale"}
            assert (before.source, after.source, after.raised) == ("fenced", "fenced", False)
        elif event == "reprotect":
            assert (before.source, before.target) == ("fenced", "running")
            assert (after.source, after.target, after.raised) == ("running", "absent", False)
        elif before.raised:
            assert after.raised
            assert after.source in {"fenced", "stale"}
            assert not (before.source == "fenced" and after.source == "stale")


@settings(max_examples=200, deadline=None)
@given(st.one_of(EVENTS, stories()))
def test_nothing_is_replicated_while_two_sites_might_be_the_primary(events: list[Event]) -> None:
    for _, before, after in _walk(events):
        if after.state in {"reprotecting", "protected", "seeding"} and before.state != after.state:
            assert not after.raised
            assert after.source in {"running", "stopped", "fenced"}
            assert after.target in {"absent", "fenced"}
