"""What is told of drafts: news only, and never too much."""

from __future__ import annotations

from collections.abc import Sequence

from farshore.model.task import DraftCover, Task
from farshore.node.drafts import DRAFT_RANGES_MAX, DRAFT_RANGES_MIN, RANGES_MAX, Drafts
from farshore.node.worker import Call


class Work:
    """A replication of some disks, each with ranges that grow."""

    def __init__(self, name: str, disks: int = 1) -> None:
        self.keys = [f"m/{number}" for number in range(disks)]
        self.ranges: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(self.keys, ())
        self.asked: list[int] = []
        params = {"disks": [{"disk_key": key} for key in self.keys]}
        self.call = Call(Task(task_id=name, kind="replicate", key=name, site="s", params=params))
        self.call.show_drafts(self._covers)

    def _covers(self, max_ranges: int) -> Sequence[DraftCover]:
        self.asked.append(max_ranges)
        name = self.call.task.task_id
        return [DraftCover(task_id=name, disk_key=key, draft_key="d", ranges=self.ranges[key]) for key in self.keys]


def test_only_what_has_changed_is_told_until_it_was_heard():
    drafts, work = Drafts(), Work("t-1", disks=2)
    assert drafts.grown([work.call]) == ()
    work.ranges["m/0"] = ((0, 5),)
    first = drafts.grown([work.call])
    assert [(cover.disk_key, cover.ranges) for cover in first] == [("m/0", ((0, 5),))]
    assert drafts.grown([work.call]) == first  # the poll was not answered
    drafts.told(first)
    assert drafts.grown([work.call]) == ()
    work.ranges["m/0"] = ()  # the draft was lost
    assert [cover.ranges for cover in drafts.grown([work.call])] == [()]


def test_a_task_that_ended_is_forgotten():
    drafts, work = Drafts(), Work("t-1")
    work.ranges["m/0"] = ((0, 5),)
    drafts.told(drafts.grown([work.call]))
    assert drafts.grown([]) == ()
    assert len(drafts.grown([work.call])) == 1


def test_many_drafts_share_the_room():
    drafts = Drafts()
    one = Work("t-1")
    drafts.grown([one.call])
    assert one.asked == [DRAFT_RANGES_MAX]
    many = Work("t-2", disks=80)
    drafts.grown([many.call])
    assert many.asked == [RANGES_MAX // 80]
    huge = Work("t-3", disks=5000)
    drafts.grown([huge.call])
    assert huge.asked == [DRAFT_RANGES_MIN]


def test_other_work_has_no_drafts():
    other = Call(Task(task_id="t", kind="inventory", key="t", site="s"))
    assert Drafts().grown([other]) == ()
