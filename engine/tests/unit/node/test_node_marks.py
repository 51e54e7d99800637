from pathlib import Path

import pytest
from farshore.errors import Fenced
from farshore.node.marks import Marks


def test_an_order_of_an_older_epoch_is_refused_also_after_a_restart(tmp_path: Path):
    Marks(tmp_path / "marks.json").fence("vm", 3)
    marks = Marks(tmp_path / "marks.json")
    with pytest.raises(Fenced) as caught:
        marks.admit("vm", 2)
    assert caught.value.evidence == {"machine_id": "vm", "fence_epoch": 3, "epoch": 2}
    marks.admit("vm", 3)
    marks.admit("other", 0)


def test_a_mark_never_falls(tmp_path: Path):
    marks = Marks(tmp_path / "marks.json")
    marks.fence("vm", 5)
    marks.fence("vm", 4)
    assert marks.epoch("vm") == 5


def test_only_the_same_or_a_higher_epoch_lifts(tmp_path: Path):
    marks = Marks(tmp_path / "marks.json")
    marks.fence("vm", 5)
    with pytest.raises(Fenced):
        marks.lift("vm", 4)
    marks.lift("vm", 5)
    marks.lift("vm", 5)
    assert Marks(tmp_path / "marks.json").epoch("vm") is None
