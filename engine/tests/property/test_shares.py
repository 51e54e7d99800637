"""Whatever is lost, late or silent: holders together never use more than the limit."""

from __future__ import annotations

from dataclasses import dataclass

from farshore.control.scheduling.shares import KEPT_S, LEASE_S, Share, lease
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

NAMES = ("a", "b", "c")


@dataclass
class Holder:
    """What a node really uses, by its own clock; ``asked_at`` is when it sent its last question that was answered."""

    rate: float = 0.0
    later: float = 0.0
    valid_until: float = 0.0
    told: Share | None = None

    def using(self, now: float) -> float:
        return self.rate if now < self.valid_until else self.later


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.shares: dict[str, Share] = {}
        self.holders = {name: Holder() for name in NAMES}
        self.heard = dict.fromkeys(NAMES, self.now)
        #: What was given last by the one that hands out, and whether the holder has it.
        self.given: dict[str, Share] = {}
        self.limit = 0.0

    @initialize(limit=st.integers(8192, 10**9))
    def begin(self, limit: int) -> None:
        self.limit = float(limit)

    @rule(
        name=st.sampled_from(NAMES), users=st.sets(st.sampled_from(NAMES)), lost=st.booleans(), takes=st.floats(0, 20)
    )
    def poll(self, name: str, users: set[str], lost: bool, takes: float) -> None:
        holder, asked_at = self.holders[name], self.now
        if name in self.shares and holder.told is not None and holder.told is self.given.get(name):
            self.shares[name] = self.shares[name].confirm()
        share = lease(self.shares, name, limit=self.limit, users=users, members=len(NAMES), now=self.now)
        self.shares[name] = self.given[name] = share
        self.heard[name] = self.now
        self.now += takes
        if not lost:
            holder.rate, holder.later, holder.told = share.rate, share.later, share
            holder.valid_until = asked_at + LEASE_S

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        # A holder that is silent for longer than KEPT_S has lost its work to somebody else, and its session with it.
        self.now += seconds
        for name, heard in self.heard.items():
            if self.now > heard + LEASE_S + KEPT_S / 2:
                self.holders[name] = Holder()

    @rule(name=st.sampled_from(NAMES))
    def restart(self, name: str) -> None:
        self.holders[name] = Holder()

    @invariant()
    def nobody_exceeds(self) -> None:
        assert sum(holder.using(self.now) for holder in self.holders.values()) <= self.limit + 1e-6
        assert sum(share.taken(self.now) for share in self.shares.values()) <= self.limit + 1e-6
        assert all(share.kept <= share.held for share in self.shares.values())


Leases.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase


def settle(limit: float, users: tuple[str, ...], shares: dict[str, Share], now: float) -> dict[str, Share]:
    """Let all ask in turn, each answer arriving, until nothing changes; return what they have."""
    for _ in range(4):
        for name in users:
            if name in shares:
                shares[name] = shares[name].confirm()
            shares[name] = lease(shares, name, limit=limit, users=users, members=3, now=now)
    return shares


def test_all_get_the_same_soon():
    shares = settle(90.0, ("a",), {}, 0.0)
    assert shares["a"].rate == 90.0
    shares = settle(90.0, NAMES, shares, 1.0)
    assert [shares[name].rate for name in NAMES] == [30.0, 30.0, 30.0]
    shares = settle(30.0, NAMES, shares, 2.0)  # the limit was lowered
    assert [shares[name].rate for name in NAMES] == [10.0, 10.0, 10.0]


def test_a_new_holder_waits_until_the_others_have_let_go():
    shares = settle(90.0, ("a",), {}, 0.0)
    first = lease(shares, "b", limit=90.0, users=("a", "b"), members=2, now=1.0)
    assert first.rate == 0.0
    shares["b"] = first
    shares["a"] = lease(shares, "a", limit=90.0, users=("a", "b"), members=2, now=1.0)
    assert shares["a"].rate == 45.0
    # The answer to a may have been lost.
    assert lease(shares, "b", limit=90.0, users=("a", "b"), members=2, now=2.0).rate == 0.0
    shares["a"] = shares["a"].confirm()
    assert lease(shares, "b", limit=90.0, users=("a", "b"), members=2, now=2.0).rate == 45.0


def test_a_silent_holder_keeps_a_part_for_a_while():
    shares = settle(84.0, ("a", "b"), {}, 0.0)
    late = LEASE_S + 1
    rest = lease(shares, "b", limit=84.0, users=("b",), members=2, now=late).rate
    assert rest == 84.0 - shares["a"].later == 70.0
    assert lease(shares, "b", limit=84.0, users=("b",), members=2, now=late + KEPT_S).rate == 84.0


def test_what_was_kept_is_not_kept_again_once_others_have_it():
    shares = settle(84.0, ("a",), {}, 0.0)
    assert shares["a"].kept == 14.0
    over = LEASE_S + KEPT_S
    shares["b"] = lease(shares, "b", limit=84.0, users=("a", "b"), members=2, now=over - 1)
    shares["b"] = lease(shares, "b", limit=84.0, users=("b",), members=2, now=over).confirm()
    assert shares["b"].held == 84.0
    shares["a"] = lease(shares, "a", limit=84.0, users=("a", "b"), members=2, now=over)
    assert (shares["a"].held, shares["a"].kept) == (0.0, 0.0)


def test_the_only_possible_holder_goes_on_as_it_was():
    share = lease({}, "a", limit=50.0, users=("a",), members=1, now=0.0)
    assert (share.rate, share.later) == (50.0, 50.0)
