"""Hooks really played: what they see, what is kept of what they say, and that nothing of them is left."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from farshore.errors import NotFound, Permanent, Unavailable
from farshore.model.probe import AnsibleProbe
from farshore.model.task import HookResult
from farshore.recovery import bundle
from farshore.recovery.hooks.output import HEAD_BYTES, TAIL_BYTES, Output
from farshore.recovery.hooks.player import Player
from farshore.recovery.hooks.run import MOST_OUTPUT_BYTES, Job, Settings, run
from farshore.recovery.probes import ansible, runner
from farshore.recovery.secrets import Secrets
from hypothesis import given
from hypothesis import strategies as st

LONG_S = 120.0


def play(
    tmp_path: Path, tasks: str, *, python: str = sys.executable, timeout_s: float = LONG_S, **more: Any
) -> HookResult:
    job = Job({"hooks/main.yml": tasks.encode(), **more.pop("files", {})}, "hooks/main.yml", timeout_s, **more)
    settings = Settings(tmp_path / "work", None, python)
    return run(job, settings, clock=time.monotonic, is_cancelled=lambda: False)


def program(tmp_path: Path, text: str) -> str:
    """Return a program that stands for the interpreter, so that a hook does exactly this."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_tasks_see_their_context_and_secrets_and_the_output_shows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARSHORE_TOKEN", "of the node")
    tasks = """
- ansible.builtin.include_tasks: more/say.yml
- ansible.builtin.debug: msg="{{ key }} and {{ lookup('file', farshore_secret_files.key) }}"
- ansible.builtin.command: printenv
  register: seen
- ansible.builtin.assert:
    that:
      - "'FARSHORE_TOKEN' not in seen.stdout"
      - groups.farshore_machines == ['db']
      - hostvars.db.ansible_host == '10.0.0.5'
"""
    result = play(
        tmp_path,
        tasks,
        files={"hooks/more/say.yml": b"- ansible.builtin.debug: msg='{{ farshore.actor }} {{ size }}'\n"},
        context={"actor": "{{ lookup('pipe', 'id') }}", "machines": {"db": {"name": "db", "address": "10.0.0.5"}}},
        vars={"size": "{{ 40 + 2 }}"},
        secrets={"key": "s3cr3t-of-the-node"},
    )
    assert result.ok, result.output
    # Text of records is no template, what the author of the tasks wrote is one.
    assert "{{ lookup('pipe', 'id') }} 42" in result.output
    assert "s3cr3t" not in result.model_dump_json()
    assert "******** and ********" in result.output
    assert result.changed == 1
    assert not list((tmp_path / "work").iterdir())


def test_a_hook_that_fails_names_its_task(tmp_path: Path) -> None:
    result = play(
        tmp_path,
        "- name: Ask the array\n  ansible.builtin.fail: msg='no LUN for {{ pw }}'\n",
        secrets={"pw": "hunter22"},
    )
    assert not result.ok
    assert result.summary == "task 'Ask the array' failed: no LUN for ********"
    assert result.killed == ""


def test_what_is_no_list_of_tasks_fails(tmp_path: Path) -> None:
    result = play(tmp_path, "hosts: all\n")
    assert not result.ok
    assert "ansible ended with status" in result.summary


def test_a_cancelled_hook_is_killed_with_what_it_has_left_in_the_background(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    daemon = f"setsid sh -c 'echo $$ > {begun}.part; mv {begun}.part {begun}; sleep 1000' >/dev/null 2>&1 &"
    job = Job({"a.yml": f'- ansible.builtin.shell: "{daemon} sleep 1000"\n'.encode()}, "a.yml", LONG_S)
    settings = Settings(tmp_path / "work", None)
    with pytest.raises(Unavailable) as caught:
        run(job, settings, clock=time.monotonic, is_cancelled=begun.exists)
    assert caught.value.code == "cancelled"
    assert is_gone(int(begun.read_text()))
    assert not list(settings.work_dir.iterdir())


def test_a_hook_that_hangs_is_killed_at_its_time_limit_with_its_children(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    child = f"(setsid sleep 1000 & echo $! > {begun}.part; mv {begun}.part {begun})"
    python = program(tmp_path, f"{child}; trap '' TERM INT; while :; do sleep 1; done")
    job = Job({"a.yml": b""}, "a.yml", LONG_S)

    def clock() -> float:
        return time.monotonic() + (LONG_S if begun.exists() else 0.0)

    result = run(job, Settings(tmp_path / "work", None, python), clock=clock, is_cancelled=lambda: False)
    assert (result.ok, result.killed) == (False, "timeout")
    assert f"not through within {LONG_S:g} s" in result.summary
    assert is_gone(int(begun.read_text()))


def test_a_hook_that_ends_leaves_no_daemon_behind(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    result = play(tmp_path, "", python=program(tmp_path, f"(setsid sleep 1000 & echo $! > {begun})"))
    assert result.summary == "it ended without a result; its output says more"
    assert is_gone(int(begun.read_text()))


def test_endless_output_ends_the_hook_and_little_of_it_is_kept(tmp_path: Path) -> None:
    result = play(tmp_path, "", python=program(tmp_path, "exec yes out-of-hand"))
    assert (result.ok, result.killed) == (False, "output")
    assert result.output_bytes > MOST_OUTPUT_BYTES
    assert "bytes left out" in result.output
    assert len(result.output) <= HEAD_BYTES + TAIL_BYTES + 64


def test_a_file_that_grows_without_end_is_stopped(tmp_path: Path) -> None:
    result = play(tmp_path, "", python=program(tmp_path, "cat /dev/zero > tmp/big; ls -s tmp/big; exit 1"))
    assert not result.ok
    assert "large" in result.output or "65536" in result.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_hook_runs_as_its_own_user_and_sees_nothing_of_the_node(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path(folder.anchor):
            folder.chmod(folder.stat().st_mode | 0o711)
    private = tmp_path / "private"
    private.write_text("of the node alone")
    private.chmod(0o600)
    python = program(
        tmp_path, f"id -un; cat {private}; touch mine && echo written; ls -ld .; grep NoNewPrivs /proc/self/status"
    )
    job = Job({"a.yml": b""}, "a.yml", LONG_S, secrets={"key": "s3cr3t-of-the-node"})
    result = run(job, Settings(tmp_path / "work", "nobody", python), clock=time.monotonic, is_cancelled=lambda: False)
    assert result.user == "nobody"
    assert result.output.startswith("nobody\n")
    assert "of the node alone" not in result.output
    assert "Permission denied" in result.output
    assert "written" in result.output
    assert "NoNewPrivs:\t1" in result.output
    assert not list((tmp_path / "work").iterdir())


def _python_of_all() -> str | None:
    """Return an interpreter of this version that every user may run, with the packages of this one, if there is one."""
    found = Path("/usr/bin/python3")
    if not found.exists():
        return None
    asked = subprocess.run(
        [found, "-c", "import sys; print(*sys.version_info[:2])"], check=True, capture_output=True, text=True
    )
    return str(found) if asked.stdout.split() == [str(part) for part in sys.version_info[:2]] else None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(_python_of_all() is None, reason="no interpreter of this version that every user may run")
def test_tasks_are_played_as_another_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path(folder.anchor):
            folder.chmod(folder.stat().st_mode | 0o711)
    subprocess.run([str(_python_of_all()), "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    library = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
    (library / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    tasks = b"""
- ansible.builtin.command: id -un
- ansible.builtin.command: cat '{{ farshore_secret_files.key }}'
"""
    job = Job({"a.yml": tasks}, "a.yml", LONG_S, secrets={"key": "s3cr3t-of-the-node"})
    settings = Settings(tmp_path / "work", "nobody", str(tmp_path / "venv" / "bin" / "python"))
    result = run(job, settings, clock=time.monotonic, is_cancelled=lambda: False)
    assert result.ok, result.output
    assert result.user == "nobody"


def test_a_user_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Permanent) as caught:
        run(
            Job({"a.yml": b""}, "a.yml", 1.0),
            Settings(tmp_path, "nobody-of-this-name"),
            clock=time.monotonic,
            is_cancelled=lambda: False,
        )
    assert caught.value.code == "hook-user-missing"
    with pytest.raises(KeyError):
        pwd.getpwnam("nobody-of-this-name")


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (Job({}, "a.yml", 1.0), "hook-file-missing"),
        (Job({"a.yml": b""}, "a.yml", 1.0, secrets={"pin": "123"}), "secret-too-short"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path: Path, job: Job, code: str) -> None:
    with pytest.raises(Permanent) as caught:
        run(job, Settings(tmp_path, None), clock=time.monotonic, is_cancelled=lambda: False)
    assert caught.value.code == code


@given(st.data())
def test_no_secret_is_left_however_the_output_is_cut(data: st.DataObject) -> None:
    secret = data.draw(
        st.text(st.sampled_from("ab\n\"'\\"), min_size=5, max_size=12).filter(lambda text: len(text.strip()) > 4)
    )
    pieces = data.draw(st.lists(st.sampled_from([secret, "a", "b", "xyz", "\n"]), max_size=20))
    whole = "".join(pieces).encode()
    output = Output([secret])
    at = 0
    while at < len(whole):
        size = data.draw(st.integers(1, 9))
        output.feed(whole[at : at + size])
        at += size
    assert secret not in output.text()


def test_long_output_keeps_its_beginning_and_its_end() -> None:
    output = Output()
    for number in range(100_000):
        output.feed(b"%06d\n" % number)
    text = output.text()
    assert text.startswith("000000\n")
    assert text.endswith("099999\n")
    assert "bytes left out" in text
    assert output.written_bytes == 700_000


def player(tmp_path: Path, content: Mapping[str, bytes]) -> tuple[Player, list[str]]:
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return content[digest]

    (tmp_path / "secrets").mkdir()
    settings = Settings(tmp_path / "work", None, program(tmp_path, "cat bundle/a.yml"))
    return Player(settings, Secrets(tmp_path / "secrets"), fetch, tmp_path / "bundles", 1), asked


def test_a_bundle_is_fetched_once_and_again_where_it_was_damaged(tmp_path: Path) -> None:
    tar = bundle.pack({"a.yml": b"# what is played\n"})
    digest = bundle.digest_of(tar)
    plays, asked = player(tmp_path, {digest: tar})

    def once() -> HookResult:
        return plays.play(digest, "a.yml", LONG_S, is_cancelled=lambda: False, context={}, variables={})

    assert "what is played" in once().output
    assert "what is played" in once().output
    assert asked == [digest]
    (tmp_path / "bundles" / f"{digest}.tar").write_bytes(tar[:-1] + b"x")
    assert "what is played" in once().output
    assert asked == [digest, digest]


def test_a_secret_that_is_missing_or_open_to_others_is_not_handed_out(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    (tmp_path / "open").write_text("anything")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "good").write_text("anything\n")
    (tmp_path / "good").chmod(0o600)
    assert secrets.read("good") == "anything"
    with pytest.raises(Permanent) as caught:
        secrets.read("open")
    assert caught.value.code == "secret-exposed"
    for name in ("missing", "../good", ".hidden"):
        with pytest.raises(NotFound):
            secrets.read(name)


def test_a_probe_is_green_when_its_tasks_end_well_and_shows_what_they_said(tmp_path: Path) -> None:
    good, bad = (
        b"- ansible.builtin.debug: msg='at {{ farshore.machine.address }}'\n",
        b"- ansible.builtin.fail: msg=down\n",
    )
    tar = bundle.pack({"checks/good.yml": good, "checks/bad.yml": bad, "checks/none.yml": b"[]\n"})
    digest = bundle.digest_of(tar)
    (tmp_path / "secrets").mkdir()
    plays = Player(
        Settings(tmp_path / "work", None), Secrets(tmp_path / "secrets"), lambda _: tar, tmp_path / "bundles", 2
    )
    probes = [
        AnsibleProbe(type="ansible", file="checks/good.yml"),
        # Played on the machine, to which there is no way by SSH: only the connection is another one.
        AnsibleProbe(type="ansible", file="checks/good.yml", on="machine", vars={"ansible_connection": "local"}),
        AnsibleProbe(type="ansible", file="checks/bad.yml", retries=0),
        AnsibleProbe(type="ansible", file="checks/good.yml", secrets=("unknown",)),
        AnsibleProbe(type="ansible", file="checks/none.yml"),
    ]
    outcomes = runner.run(
        probes,
        machine_id="m-1",
        compute=None,
        address=lambda: "10.9.0.10",
        clock=time.monotonic,
        wait=lambda _: False,
        others=ansible.looker(plays, digest, {"machine": {"name": "db"}}, lambda: False),
    )
    assert [outcome.green for outcome in outcomes] == [True, True, False, False, False]
    assert "at 10.9.0.10" in outcomes[0].evidence
    assert "ok: [db]" in outcomes[1].evidence
    assert "task 'ansible.builtin.fail' failed: down" in outcomes[2].detail
    assert "no secret 'unknown'" in outcomes[3].detail
    assert outcomes[3].tries == 1
    assert "proves nothing" in outcomes[4].detail
