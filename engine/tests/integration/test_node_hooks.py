"""A hook by a real node: fetched from the real control plane, played, and ended with the node that plays it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control, until
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.control import tasks
from farshore.control.planning import bundles
from farshore.control.store import Store
from farshore.control.store.records import Task
from farshore.model.task import HookParams
from farshore.recovery import bundle


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    plane = Control(tmp_path / "home").start()
    yield plane
    assert plane.stop() == 0


@pytest.fixture
def node(control: Control, tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path, "beta-1", "beta", control.home.node_url, free_port())
    # Whoever runs the tests: the interpreter may lie where nobody else gets to. Other users are for the unit tests.
    user = pwd.getpwuid(os.geteuid()).pw_name
    made.settings["hooks"] = {"user": user, "work_dir": str(tmp_path / "work")}
    made.write()
    control.ok("PUT", "/sites/beta", {"platform": "file"})
    control.ok("PUT", "/nodes/beta-1", {"site": "beta", "roles": ["recovery"], "data_address": "127.0.0.1:1"})
    ticket = control.ok("POST", "/nodes/beta-1:token")
    made.enrol(ticket["token"], ca_sha256=ticket["ca_sha256"])
    secrets = made.state / "secrets"
    secrets.mkdir()
    (secrets / "key").write_text("s3cr3t-of-the-node\n")
    (secrets / "key").chmod(0o600)
    yield made.start()
    made.close()


def order(control: Control, key: str, tasks_text: str, **more: Any) -> str:
    """Have site beta play this, as a run would; return the task's id."""
    tar = bundle.pack({"hooks/a.yml": tasks_text.encode()})
    store = Store(control.home.database)
    with store.write() as tx:
        bundles.keep(tx, tar, "test")
        params = HookParams(bundle=bundle.digest_of(tar), file="hooks/a.yml", timeout_s=300, secrets=("key",), **more)
        task_id = tasks.ensure(tx, key, "hook", "beta", params).task_id
    store.close()
    return task_id


def ended(control: Control, task_id: str) -> Task:
    store = Store(control.home.database)

    def look() -> Task | None:
        with store.read() as session:
            task = session.get_one(Task, task_id)
            return task if task.state in tasks.ENDED else None

    try:
        found: Task = until(look, "the hook ends", 120)
    finally:
        store.close()
    return found


def test_a_hook_is_fetched_played_and_killed_with_its_node(control: Control, node: NodeProcess, tmp_path: Path) -> None:
    said = "- ansible.builtin.debug: msg='{{ farshore.verb }} with {{ key }}'\n"
    task = ended(control, order(control, "one", said, context={"verb": "drill"}))
    assert task.state == "succeeded", task.error
    result = task.result or {}
    assert result["ok"], result["output"]
    assert "drill with ********" in result["output"]
    assert "s3cr3t" not in node.log_path.read_text()
    assert [path.suffix for path in (node.state / "bundles").iterdir()] == [".tar"]

    begun = tmp_path / "begun"
    hang = f"setsid sh -c 'echo $$ > {begun}.part; mv {begun}.part {begun}; exec sleep 1000'"
    # The second time there is something to see of the first, and it ends well.
    task_id = order(control, "two", f'- ansible.builtin.shell: "test -e {begun} || {hang}"\n')
    until(begun.exists, "the hook has begun", 120)
    pid = int(begun.read_text())
    node.kill()
    assert any((tmp_path / "work").iterdir())
    until(lambda: not Path(f"/proc/{pid}").exists(), "what the hook began ends with its node")
    node.start()
    task = ended(control, task_id)
    assert (task.state, task.term) == ("succeeded", 2)
    assert (task.result or {})["ok"]
    assert node.stop() == 0
    assert not any((tmp_path / "work").iterdir())
