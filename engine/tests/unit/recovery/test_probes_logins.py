"""Probes that log in, that ask agents, and what they say where they cannot."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from doubles.ssh_server import SshServer, new_key, ssh_server
from doubles.winrm_server import WinRmServer, winrm_server
from farshore.errors import NotFound, Permanent, Retry
from farshore.model.plan import GuestAgentProbe, HttpProbe, SshProbe, TcpProbe, WinRmProbe
from farshore.model.task import ProbeOutcome
from farshore.platforms.contract import Compute
from farshore.recovery.probes import runner
from farshore.recovery.secrets import Secrets
from pydantic import ValidationError


def try_one(probe: Any, **options: Any) -> ProbeOutcome:
    """Try a probe against real peers, with a real clock."""
    given = {
        "machine_id": "vm",
        "compute": None,
        "address": lambda: "127.0.0.1",
        "clock": time.monotonic,
        "wait": threading.Event().wait,
    }
    (outcome,) = runner.run([probe], **{**given, **options})
    return outcome


def ssh(server: SshServer, **options: Any) -> SshProbe:
    given = {"password": "word", "user": "probe", "command": "systemctl is-active shop", "timeout": 60, "interval": 0.1}
    return SshProbe(type="ssh", port=server.port, **{**given, "retries": 0, **options})


def secrets(**known: str) -> Callable[[str], str]:
    def find(name: str) -> str:
        if name not in known:
            raise NotFound(f"this node has no secret {name!r}", code="secret-unknown")
        return known[name]

    return find


ACTIVE = {"systemctl is-active shop": ("active\n", 0)}


def test_ssh_is_green_when_the_command_ends_as_expected_and_the_secret_stays_where_it_is(tmp_path: Path):
    key, text = new_key()
    (tmp_path / "shop-key").write_text(text)
    (tmp_path / "shop-key").chmod(0o600)
    with ssh_server(SshServer(key=key, answers=ACTIVE)) as server:
        probe = ssh(server, password=None, key="shop-key", contains="active", host_key=server.fingerprint)
        outcome = try_one(probe, secret=Secrets(tmp_path).read)
    assert outcome.green, outcome
    assert (outcome.code, outcome.target) == ("", f"ssh://probe@127.0.0.1:{server.port}")
    assert server.fingerprint in outcome.evidence
    assert "active" in outcome.evidence
    assert text.splitlines()[1] not in outcome.evidence


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"exit": 3}, "wrong-answer", "exit status 0, not 3"),
        ({"contains": "stopped"}, "wrong-answer", "lacks the text"),
        ({"user": "other"}, "not-allowed", "other is not let in"),
        ({"host_key": "SHA256:" + "A" * 43}, "wrong-host-key", "the guest shows the host key"),
        ({"password": "missing"}, "cannot-try", "no secret 'missing'"),
        ({"password": None, "key": "word"}, "cannot-try", "no private key"),
        ({"command": "sleep infinity", "timeout": 2}, "no-answer", "time"),
    ],
)
def test_ssh_is_red_and_says_why(changes: dict[str, Any], code: str, detail: str):
    with ssh_server(SshServer(password="p4ss", answers=ACTIVE)) as server:
        outcome = try_one(ssh(server, **changes), secret=secrets(word="p4ss"))
    assert not outcome.green
    assert (outcome.code, detail in outcome.detail) == (code, True), outcome
    assert "p4ss" not in outcome.evidence + outcome.detail


def test_a_guest_with_another_host_key_gets_no_password():
    with ssh_server(SshServer(password="p4ss", answers=ACTIVE)) as server:
        try_one(ssh(server, host_key="SHA256:" + "A" * 43), secret=secrets(word="p4ss"))
        assert server.logins == []


def test_logins_that_are_refused_are_not_tried_until_the_account_is_locked():
    with ssh_server(SshServer(password="other", answers=ACTIVE)) as server:
        outcome = try_one(ssh(server, retries=None), secret=secrets(word="p4ss"))
        assert len(server.logins) == outcome.tries == runner.MOST_REFUSED
    assert outcome.code == "not-allowed"
    assert "so that no account is locked" in outcome.detail


def test_a_secret_that_is_not_there_is_asked_for_once():
    outcome = try_one(ssh(SshServer(port=1), retries=None), secret=secrets())
    assert (outcome.tries, outcome.code) == (1, "cannot-try")


def test_a_port_that_is_no_ssh_is_red():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_say, args=(listener, b"220 mail\r\n"), daemon=True).start()
        outcome = try_one(ssh(SshServer(port=listener.getsockname()[1])), secret=secrets(word="p4ss"))
    assert (outcome.green, outcome.code) == (False, "wrong-answer")


def _say(listener: socket.socket, text: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(text)


def winrm(server: WinRmServer, **options: Any) -> WinRmProbe:
    given = {"password": "word", "user": "probe", "command": "sc query shop", "auth": "basic", "validate_certs": False}
    return WinRmProbe(type="winrm", port=server.port, **{**given, "retries": 0, "timeout": 60, **options})


RUNNING = {"sc query shop": ("STATE : 4 RUNNING\r\n", 0)}


def test_winrm_is_green_when_the_command_ends_as_expected_and_leaves_no_shell(tmp_path: Path):
    with winrm_server(WinRmServer(password="p4ss", answers=RUNNING), tmp_path) as server:
        outcome = try_one(winrm(server, contains="RUNNING"), secret=secrets(word="p4ss"))
        assert outcome.green, outcome
        assert list(server.commands.values()) == ["sc query shop"]
        assert server.shells == set()
    assert "4 RUNNING" in outcome.evidence
    assert outcome.target == f"winrms://probe@127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"exit": 3}, "wrong-answer", "exit status 0, not 3"),
        ({"contains": "STOPPED"}, "wrong-answer", "lacks the text"),
        ({"user": "other"}, "not-allowed", "other"),
        ({"validate_certs": True}, "wrong-host-key", "certificate"),
        ({"password": "missing"}, "cannot-try", "no secret 'missing'"),
        ({"command": "pause", "timeout": 2}, "no-answer", "did not end"),
    ],
)
def test_winrm_is_red_and_says_why(changes: dict[str, Any], code: str, detail: str, tmp_path: Path):
    with winrm_server(WinRmServer(password="p4ss", answers=RUNNING), tmp_path) as server:
        outcome = try_one(winrm(server, **changes), secret=secrets(word="p4ss"))
    assert not outcome.green
    assert (outcome.code, detail in outcome.detail) == (code, True), outcome
    assert "p4ss" not in outcome.evidence + outcome.detail


def test_a_port_where_nobody_listens_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for probe in (ssh(SshServer(port=port)), winrm(WinRmServer(port=port)), http(port)):
        assert try_one(probe, secret=secrets(word="p4ss")).code == "refused", probe.type


def http(port: int, **options: Any) -> HttpProbe:
    return HttpProbe(type="http", port=port, timeout=1, interval=0.1, **options)


class Agent:
    """A guest agent that answers from a list."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def agent(self, _machine_id: str, request: Mapping[str, Any], _timeout_s: float) -> Any:
        self.asked.append(dict(request))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def agent_probe(**options: Any) -> GuestAgentProbe:
    return GuestAgentProbe(type="guest_agent", retries=options.pop("retries", 0), interval=0.1, **options)


def ask(probe: GuestAgentProbe, *answers: Any) -> tuple[ProbeOutcome, Agent]:
    guest = Agent(*answers)
    return try_one(probe, compute=cast("Compute", guest), address=lambda: None), guest


def test_an_agent_that_answers_is_green_and_runs_nothing_unless_told():
    outcome, guest = ask(agent_probe(retries=3), Retry("not connected", code="no-answer"), {})
    assert (outcome.green, outcome.tries) == (True, 2)
    assert [asked["execute"] for asked in guest.asked] == ["guest-ping", "guest-ping"]


def test_an_agent_runs_the_command_that_the_policy_names():
    probe = agent_probe(command=["/usr/bin/systemctl", "is-active", "shop"], contains="active")
    ended = {"exited": True, "exitcode": 0, "out-data": "YWN0aXZlCg=="}
    outcome, guest = ask(probe, {}, {"pid": 7}, {"exited": False}, ended)
    assert outcome.green
    assert guest.asked[1]["arguments"]["arg"] == ["is-active", "shop"]
    assert "active" in outcome.evidence


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([Permanent("machine has no guest agent", code="no-agent")], "no-agent"),
        ([Retry("silence", code="no-answer")], "no-answer"),
        ([{}, {"pid": 7}, {"exited": True, "exitcode": 1}], "wrong-answer"),
        ([{}, {"pid": 7}, {"exited": True, "signal": 9}], "wrong-answer"),
        ([{}, "nonsense"], "wrong-answer"),
        ([{}, Permanent("guest-exec has been disabled", code="agent-refused")], "agent-refused"),
    ],
)
def test_an_agent_that_does_not_is_red(answers: list[Any], code: str):
    outcome, _ = ask(agent_probe(command=["/bin/true"]), *answers)
    assert (outcome.green, outcome.code) == (False, code)


class Known:
    """A machine with addresses."""

    def __init__(self, *addresses: str) -> None:
        self.known = list(addresses)

    def addresses(self, _machine_id: str) -> list[str]:
        return self.known


def test_a_name_that_is_not_known_leads_elsewhere_or_has_no_machine_is_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def look(name: str, *known: str) -> ProbeOutcome:
            return try_one(
                TcpProbe(type="tcp", port=port, banner="x", host=name, timeout=2, retries=0),
                compute=cast("Compute", Known(*known)),
                address=lambda: known[0] if known else None,
            )

        assert look("no-such-name.invalid", "10.0.0.9").code == "dns-failed"
        elsewhere = look("localhost", "10.0.0.9")
        assert elsewhere.code == "dns-elsewhere"
        assert "10.0.0.9" in elsewhere.detail
        assert look("localhost").code == "no-address"
        threading.Thread(target=_say, args=(listener, b"x"), daemon=True).start()
        assert look("localhost", "127.0.0.1").green


def test_a_probe_without_an_address_or_an_answer_says_which():
    assert try_one(http(1), address=lambda: None).code == "no-address"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert try_one(http(listener.getsockname()[1], retries=0)).code == "no-answer"


def test_retries_end_a_probe_before_its_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    probe = HttpProbe(type="http", port=port, timeout=600, interval=0.05, retries=2)
    outcome = try_one(probe)
    assert outcome.tries == 3
    assert "not green in 3 tries" in outcome.detail


def test_a_probe_that_hangs_keeps_no_other_waiting():
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as good:
        threading.Thread(target=_say, args=(good, b"SSH-2.0"), daemon=True).start()
        slow = ssh(SshServer(port=mute.getsockname()[1]), timeout=3)
        quick = TcpProbe(type="tcp", port=good.getsockname()[1], banner="SSH", timeout=60)
        first, second = runner.run(
            [slow, quick],
            machine_id="vm",
            compute=None,
            address=lambda: "127.0.0.1",
            clock=time.monotonic,
            wait=threading.Event().wait,
            secret=secrets(word="p4ss"),
        )
    assert not first.green
    assert second.green
    assert second.seconds < first.seconds


@pytest.mark.parametrize(
    "probe",
    [
        {"type": "ssh", "user": "u", "command": "true"},
        {"type": "ssh", "user": "u", "command": "true", "key": "a", "password": "b"},
        {"type": "ssh", "user": "u", "command": "true", "key": "a", "host_key": "SHA256:short"},
        {"type": "winrm", "user": "u", "command": "ver"},
        {"type": "winrm", "user": "u", "command": "ver", "password": "p", "auth": "basic", "tls": False},
        {"type": "guest_agent", "command": ["ls"]},
        {"type": "guest_agent", "contains": "x"},
    ],
)
def test_plans_cannot_ask_for_what_is_no_probe(probe: dict[str, Any]):
    kinds = {"ssh": SshProbe, "winrm": WinRmProbe, "guest_agent": GuestAgentProbe}
    with pytest.raises(ValidationError):
        kinds[probe["type"]].model_validate(probe)
