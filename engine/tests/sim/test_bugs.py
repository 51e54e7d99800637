"""The simulation has teeth: bugs that are put into the data path are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim import hunt
from sim.child import python

SOURCE = Path(__file__).parents[2] / "src"


def test_every_bug_can_still_be_put_in() -> None:
    found = [hunt.load(name) for name in hunt.names()]
    for bug in found:
        for module in bug.modules:
            bug.apply(module, (SOURCE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    assert len([bug for bug in found if bug.share]) >= 35
    assert len([bug for bug in found if 0 < bug.share < 0.03]) >= 10, "some of them are rare"


QUICK = [name for name in hunt.names() if hunt.load(name).quick]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", QUICK)
def test_a_bug_that_is_put_in_is_found(name: str) -> None:
    done = python("sim.hunt", name)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
