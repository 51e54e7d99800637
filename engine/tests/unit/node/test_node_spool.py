import json
from pathlib import Path

import pytest
from farshore import durable
from farshore.errors import Invalid
from farshore.model.task import Task, TaskReport
from farshore.node.spool import Owed, Spool


class Killed(BaseException):
    """The process ends here."""


def task(term: int = 1, task_id: str = "tsk-1") -> Task:
    return Task(task_id=task_id, kind="inventory", key="k", site="alpha", term=term)


def owed(term: int = 1, task_id: str = "tsk-1") -> Owed:
    report = TaskReport(state="succeeded", term=term, result={"n": term}).model_dump(mode="json")
    return Owed(task_id, "inventory", term, report)


def test_what_was_only_accepted_was_interrupted(tmp_path: Path):
    Spool(tmp_path).accept(task())
    assert Spool(tmp_path).recover() == ([], ["tsk-1"])
    assert Spool(tmp_path).recover() == ([], [])


def test_a_report_outlives_the_process_until_it_is_delivered(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.accept(task())
    spool.finish(owed())
    for _ in range(2):
        assert Spool(tmp_path).recover() == ([owed()], [])
    Spool(tmp_path).delivered("tsk-1")
    assert Spool(tmp_path).recover() == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_began_again_replaces_its_old_report(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.finish(owed(term=1))
    spool.accept(task(term=2))
    assert Spool(tmp_path).recover() == ([], ["tsk-1"])


#: A task's whole life in calls of durable: accept writes and removes, finish writes and removes, delivered removes.
LIFE = ["accept: task", "accept: old report", "finish: report", "finish: task", "delivered: report"]


@pytest.mark.parametrize("survived", range(len(LIFE) + 1), ids=["nothing", *LIFE])
@pytest.mark.parametrize("old_report", [False, True], ids=["new", "again"])
def test_every_crash_point_leaves_a_report_or_an_interrupted_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int, old_report: bool
):
    spool = Spool(tmp_path)
    if old_report:
        spool.finish(owed(term=1))
    left = survived
    write_json, remove = durable.write_json, durable.remove

    def count() -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    def counted_write(path: Path, value: object, mode: int = 0o600) -> None:
        count()
        write_json(path, value, mode)

    def counted_remove(path: Path) -> bool:
        count()
        return remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_json", counted_write)
        patch.setattr(durable, "remove", counted_remove)
        try:
            spool.accept(task(term=2))
            spool.finish(owed(term=2))
            spool.delivered("tsk-1")
        except Killed:
            pass
    reports, interrupted = Spool(tmp_path).recover()
    done = LIFE[:survived]
    if "delivered: report" in done:
        expected: tuple[list[int], list[str]] = ([], [])
    elif "finish: report" in done:
        expected = ([2], [])
    elif "accept: task" in done:
        expected = ([], ["tsk-1"])
    else:
        expected = ([1], []) if old_report else ([], [])
    assert ([report.term for report in reports], interrupted) == expected
    # And once more: what recovery itself did is durable too.
    assert [report.term for report in Spool(tmp_path).recover()[0]] == expected[0]
    assert Spool(tmp_path).recover()[1] == []


def test_leftovers_of_a_torn_write_go(tmp_path: Path):
    (tmp_path / ".tsk-1.report.json.abc.tmp").write_text("{")
    assert Spool(tmp_path).recover() == ([], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"task_id": "../x", "term": 1}', '{"task_id": "tsk-1", "term": "x"}'])
def test_a_file_that_nobody_understands_is_set_aside(tmp_path: Path, text: str):
    (tmp_path / "tsk-1.task.json").write_text(text)
    (tmp_path / "tsk-2.report.json").write_text(text)
    Spool(tmp_path).finish(owed(task_id="tsk-3"))
    reports, interrupted = Spool(tmp_path).recover()
    assert [report.task_id for report in reports] == ["tsk-3"]
    assert interrupted == []
    assert {path.name for path in tmp_path.glob("*.bad")} == {"tsk-1.task.json.bad", "tsk-2.report.json.bad"}


@pytest.mark.parametrize("task_id", ["", "../x", "a/b", "a b", ".x", "x" * 200, "a\n"])
def test_a_task_id_is_never_a_path(tmp_path: Path, task_id: str):
    with pytest.raises(Invalid):
        Spool(tmp_path).accept(task(task_id=task_id))
    assert list(tmp_path.iterdir()) == []


def test_parameters_are_not_kept_on_disk(tmp_path: Path):
    Spool(tmp_path).accept(task().model_copy(update={"params": {"grant": "s3cret"}}))
    assert "s3cret" not in (tmp_path / "tsk-1.task.json").read_text()
    assert json.loads((tmp_path / "tsk-1.task.json").read_text()) == {
        "task_id": "tsk-1",
        "kind": "inventory",
        "term": 1,
    }
