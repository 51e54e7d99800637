"""The whole data plane under a clock, a network and disks that one seed decides about; see docs/internals/proofs.md."""

from __future__ import annotations

import pytest
from sim import world
from sim.child import python

SCHEDULES = 2000


@pytest.mark.timeout(1200)
def test_schedules_break_no_invariant_and_try_every_fault() -> None:
    done = python("sim.run", f"--count={SCHEDULES}", "--seed=1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    counted = {
        name.strip(): int(value)
        for value, _, name in (line.strip().partition(" ") for line in done.stdout.splitlines())
        if value.isdigit()
    }
    for kind in set(world.KINDS) - {"zeros", "squeeze", "takeover"}:  # these three are no single events
        assert counted.get(kind, 0) > 0, f"{kind} never happened"
    for what in (
        "source dials",
        "oracle takeovers",
        "oracle frames compressed",
        "oracle levels up",
        "oracle levels down",
        *(f"theme {name}" for name in world.THEMES),
    ):
        assert counted.get(what, 0) > 0, f"{what}: never"
    assert counted["oracle published"] >= SCHEDULES
    assert counted["oracle marks"] > 10 * SCHEDULES


def test_the_same_seed_is_the_same_schedule() -> None:
    with world.stage():
        runs = [(world.play(seed).hub.fingerprint, world.play(seed).hub.fingerprint) for seed in range(40, 60)]
    assert all(one == other for one, other in runs)
    assert len({one for one, _ in runs}) == len(runs)


def test_without_faults_each_cycle_needs_one_attempt() -> None:
    with world.stage():
        for seed in range(30):
            one = world.play(seed, faults=False)
            assert not [name for name in one.counts if name.startswith("outcome")]
            assert len(one.oracle.published) == one.cycles == len(one.oracle.attempts)
