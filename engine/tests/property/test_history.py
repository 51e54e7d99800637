"""Whatever a journal goes through, what it calls durable is durable and of its subject."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from farshore.journal.history import History, Kind, Subject
from farshore.journal.ranges import encode_ranges
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

SIZE = 64
SUBJECT = Subject("grp", "cp-1", "web/vda", SIZE, "pt-1", None, None, 1)
spans = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 8)).map(lambda one: (one[0], min(SIZE, one[0] + one[1])))
records = st.lists(st.tuples(st.sampled_from((Kind.DURABLE, Kind.TOUCHED)), spans), max_size=12)


def begun() -> History:
    history = History()
    body = {"format": 1, "subject": asdict(SUBJECT), "draft_key": "draft-1"}
    history.add(Kind.BEGIN, json.dumps(body).encode())
    history.add(Kind.OPENED, b'{"boot": "a"}')
    return history


def add(history: History, kind: Kind, span: tuple[int, int]) -> None:
    for body in encode_ranges([span]):
        history.add(kind, body)


def places(ranges: object) -> set[int]:
    return {at for start, stop in ranges for at in range(start, stop)}  # type: ignore[attr-defined]


class Drafts(RuleBasedStateMachine):
    """A model of single places: which content each has, and whether a power cut would take it."""

    def __init__(self) -> None:
        super().__init__()
        self.history = begun()
        self.point = 1
        self.content: dict[int, int] = {}
        self.durable: set[int] = set()
        self.settled = True

    @precondition(lambda self: self.settled)
    @rule(span=spans)
    def write(self, span: tuple[int, int]) -> None:
        add(self.history, Kind.TOUCHED, span)
        for at in range(*span):
            self.content[at] = self.point
            self.durable.discard(at)

    @precondition(lambda self: self.settled)
    @rule(span=spans)
    def copy_and_mark(self, span: tuple[int, int]) -> None:
        self.write(span)
        add(self.history, Kind.DURABLE, span)
        self.durable |= set(range(*span))

    @rule()
    def next_point(self) -> None:
        self.point += 1
        subject = replace(SUBJECT, checkpoint_id=f"cp-{self.point}", source_point=f"pt-{self.point}")
        self.history.add(Kind.ADOPTED, json.dumps(asdict(subject)).encode())
        self.durable.clear()
        self.settled = False

    @precondition(lambda self: not self.settled)
    @rule(equal=st.lists(spans, max_size=3))
    def compare(self, equal: list[tuple[int, int]]) -> None:
        """Some of what is held turns out to be the new point's content too."""
        held = places(self.history.held)
        for span in equal:
            for at in range(*span):
                if at in held:
                    add(self.history, Kind.DURABLE, (at, at + 1))
                    self.content[at] = self.point
                    self.durable.add(at)
        self.history.add(Kind.COMPARED, b"")
        self.settled = True

    @rule()
    def lose(self) -> None:
        self.history.add(Kind.LOST, b"")
        self.content.clear()
        self.durable.clear()
        self.settled = True

    @invariant()
    def what_is_durable_is_of_the_subject(self) -> None:
        for at in places(self.history.durable):
            assert self.content.get(at) == self.point

    @invariant()
    def nothing_that_was_written_is_unnamed(self) -> None:
        history = self.history
        named = places(history.durable) | places(history.touched) | places(history.held) | places(history.dirty)
        assert set(self.content) <= named

    @invariant()
    def nothing_is_settled_and_open_at_once(self) -> None:
        history = self.history
        assert not places(history.durable) & places(history.held)
        assert not places(history.held) & places(history.dirty)


TestDrafts = Drafts.TestCase
TestDrafts.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)


@settings(max_examples=200)
@given(records)
def test_replaying_a_record_twice_in_a_row_changes_nothing(items: list[tuple[Kind, tuple[int, int]]]) -> None:
    once, twice = begun(), begun()
    for kind, span in items:
        add(once, kind, span)
        add(twice, kind, span)
        add(twice, kind, span)
    assert (once.durable, once.touched) == (twice.durable, twice.touched)


@settings(max_examples=200)
@given(records)
def test_durable_progress_never_shrinks_within_a_generation(items: list[tuple[Kind, tuple[int, int]]]) -> None:
    history = begun()
    seen: set[int] = set()
    for kind, span in items:
        add(history, kind, span)
        now = places(history.durable)
        assert seen <= now
        seen = now


@settings(max_examples=200)
@given(records, st.booleans(), st.sampled_from(("a", "b")))
def test_a_journal_is_whole_unless_a_machine_went_down_with_it_open(
    items: list[tuple[Kind, tuple[int, int]]], closed: bool, boot: str
) -> None:
    history = begun()
    for kind, span in items:
        add(history, kind, span)
    if closed:
        history.add(Kind.CLOSED, b"")
    assert history.is_exact_at(boot) == (closed or boot == "a")
