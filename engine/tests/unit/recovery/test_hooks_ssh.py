"""Hooks whose tasks go on by SSH: to machines of the run, with the secrets that the hook names and no others."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from doubles.ssh_server import SshServer, new_key, ssh_server
from farshore.model.task import HookResult
from farshore.recovery.hooks.run import Job, Settings, run

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh here")

ASK = "systemctl is-active shop"
TASKS = f"""
- name: Ask the machine
  ansible.builtin.raw: {ASK}
  delegate_to: db
  vars:
    ansible_user: probe
    ansible_port: "{{{{ ssh_port }}}}"
  register: asked
- name: It works
  ansible.builtin.assert: {{that: "'active' in asked.stdout"}}
"""


def server_of(key: object) -> SshServer:
    return SshServer(address="127.0.0.2", key=key, answers={ASK: ("active\n", 0)})  # type: ignore[arg-type]


def known(server: SshServer) -> str:
    return f"[{server.address}]:{server.port} {server.host_key.get_name()} {server.host_key.get_base64()}\n"


def play(port: int, secrets: Mapping[str, str], tasks: str = TASKS) -> HookResult:
    job = Job(
        {"a.yml": tasks.encode()},
        "a.yml",
        120.0,
        context={"machines": {"db": {"name": "db", "address": "127.0.0.2"}}},
        vars={"ssh_port": port},
        secrets=secrets,
    )
    with tempfile.TemporaryDirectory() as folder:
        # As long as the name of a node may be: what SSH makes in the folder of the hook has to find room in its path.
        settings = Settings(Path(folder), None, owner="beta-" + "1" * 58)
        return run(job, settings, clock=time.monotonic, is_cancelled=lambda: False)


def test_a_task_is_played_on_a_machine_with_the_key_that_the_hook_names() -> None:
    key, text = new_key()
    with ssh_server(server_of(key)) as server:
        result = play(server.port, {"ssh_key": text, "known_hosts": known(server)})
    assert result.ok, result.output
    assert "localhost -> db(127.0.0.2)" in result.output
    assert text.splitlines()[1] not in result.output


def test_tasks_may_name_their_keys_themselves() -> None:
    key, text = new_key()
    own = (
        "vars:\n    ansible_ssh_private_key_file: '{{ farshore_secret_files.array }}'"
        "\n    ansible_ssh_common_args: -o UserKnownHostsFile={{ farshore_secret_files.hosts }}"
    )
    with ssh_server(server_of(key)) as server:
        result = play(server.port, {"array": text, "hosts": known(server)}, TASKS.replace("vars:", own))
    assert result.ok, result.output


def test_a_machine_that_nobody_knows_is_told_nothing() -> None:
    key, text = new_key()
    with ssh_server(server_of(key)) as server:
        result = play(server.port, {"ssh_key": text})
        assert server.logins == []
    assert not result.ok
    assert "Host key verification failed" in result.summary


def test_a_key_that_the_hook_does_not_name_is_offered_to_nobody() -> None:
    """SSH looks for keys in the home of its user by itself, and asks an agent."""
    asked = "- ansible.builtin.command: ssh {{ lookup('env', 'ANSIBLE_SSH_ARGS') }} -G db\n"
    seen = play(
        0, {}, asked.replace("command:", "shell:") + "  register: seen\n- debug: var=seen.stdout_lines\n"
    ).output
    assert '"identityfile none"' in seen
    assert '"identityagent none"' in seen
    assert seen.count("identityfile") == 1
    assert "/home/.ssh/known_hosts" in seen
    with ssh_server(server_of(new_key()[0])) as server:
        result = play(server.port, {"known_hosts": known(server)})
    assert not result.ok
    assert "Permission denied" in result.summary
