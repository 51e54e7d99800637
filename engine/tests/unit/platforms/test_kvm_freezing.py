"""Freezing guests whose agents fail in every way: nobody stays frozen, and nothing counts that was not done."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import libvirt
import pytest
from farshore.errors import Retry
from farshore.model.plan import Quiesce
from farshore.platforms.kvm import backup, freezing, machines
from farshore.platforms.kvm.points import MachineRecord, PointRecord
from farshore.platforms.kvm.source import KvmSource
from farshore.platforms.nbd.launcher import Launcher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Ways in which an agent may answer a command.
FAULTS = ("", "silent", "refuses", "nonsense", "late")


class Guest:
    """A guest's agent as libvirt shows it. ``faults``: by command, how its next answers fail; then all is well."""

    def __init__(self, **faults: list[str]) -> None:
        self.faults = {name.replace("_", "-"): list(ways) for name, ways in faults.items()}
        self.frozen = False
        self.early = False
        #: The agent was started again and knows nothing of its former life.
        self.forgot = False
        self.thaws = True
        self.asked: list[str] = []
        self.ran: list[list[str]] = []
        self.lock = threading.Lock()

    def answer(self, order: dict[str, Any]) -> Any:
        command = order["execute"]
        with self.lock:
            self.asked.append(command)
            way = (self.faults.get(command) or [""]).pop(0)
            if way == "silent":
                raise libvirt.libvirtError("Guest agent is not responding: no answer")
            if way == "refuses":
                raise libvirt.libvirtError("internal error: unable to execute QEMU agent command: no")
            result = self.act(command, order.get("arguments", {}))
            if way == "late":  # carried out, and the answer was lost
                raise libvirt.libvirtError("Timed out during operation: guest agent")
            return "nonsense" if way == "nonsense" else result

    def act(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "guest-fsfreeze-freeze":
            self.frozen = not self.early
            return 2
        if command == "guest-fsfreeze-status":
            return "frozen" if self.frozen and not self.forgot else "thawed"
        if command == "guest-fsfreeze-thaw":
            count, self.frozen = (2 if self.frozen and self.thaws else 0), self.frozen and not self.thaws
            return count
        if command == "guest-exec":
            self.ran.append([arguments["path"], *arguments["arg"]])
            return {"pid": 7}
        if command == "guest-exec-status":
            return {"exited": True, "exitcode": 0}
        return {}


@pytest.fixture(autouse=True)
def agent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Binding:
        @staticmethod
        def qemuAgentCommand(guest: Guest, text: str, _timeout_s: int, _flags: int) -> str:  # noqa: N802
            return json.dumps({"return": guest.answer(json.loads(text))})

    monkeypatch.setattr(freezing, "_binding", Binding)
    monkeypatch.setattr(freezing, "THAW_WITHIN_S", 0.3)
    monkeypatch.setattr(freezing, "THAW_PAUSE_S", 0.001)


def frozen(
    guests: dict[str, Guest], quiesce: dict[str, Quiesce] | None = None, during: Callable[[], None] = lambda: None
) -> dict[str, freezing.Frozen]:
    with freezing.frozen(list(guests.items()), quiesce or {}) as outcomes:
        during()
    return outcomes


def test_all_are_frozen_while_the_point_is_taken_and_thawed_after() -> None:
    guests = {"a": Guest(), "b": Guest()}
    seen: list[bool] = []
    commands = {"b": Quiesce(before=("/bin/stop", "writes"), after=("/bin/go",))}
    outcomes = frozen(guests, commands, lambda: seen.extend(guest.frozen for guest in guests.values()))
    assert seen == [True, True]
    assert [guest.frozen for guest in guests.values()] == [False, False]
    assert {name: (one.reason, one.file_systems) for name, one in outcomes.items()} == {"a": ("", 2), "b": ("", 2)}
    assert guests["a"].ran == []
    assert guests["b"].ran == [["/bin/stop", "writes"], ["/bin/go"]]
    order = [guests["b"].asked.index(name) for name in ("guest-exec", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        (Guest(guest_ping=["silent"]), "no guest agent answers: Guest agent is not responding: no answer"),
        (Guest(guest_fsfreeze_freeze=["refuses"]), "the freeze failed"),
        (Guest(guest_fsfreeze_freeze=["late"]), "the freeze failed"),
        (Guest(guest_fsfreeze_freeze=["nonsense"]), "the freeze failed"),
        (Guest(guest_fsfreeze_status=["refuses"]), "the thaw failed"),
    ],
)
def test_one_that_fails_says_why_does_not_count_and_is_thawed(guest: Guest, reason: str) -> None:
    other = Guest()
    outcomes = frozen({"a": guest, "b": other})
    assert outcomes["a"].reason.startswith(reason)
    assert outcomes["b"].reason == ""
    assert not guest.frozen
    assert not other.frozen


def test_one_that_thawed_by_itself_does_not_count() -> None:
    guest = Guest()

    def time_out() -> None:
        guest.frozen = False

    assert "before the point was taken" in frozen({"a": guest}, during=time_out)["a"].reason


def test_a_command_that_fails_before_keeps_the_guest_from_being_frozen_and_the_one_after_runs() -> None:
    guest = Guest(guest_exec=["refuses"])
    outcome = frozen({"a": guest}, {"a": Quiesce(before=("/bin/stop",), after=("/bin/go",))})["a"]
    assert outcome.reason.startswith("/bin/stop: it could not be run")
    assert "guest-fsfreeze-freeze" not in guest.asked
    assert guest.ran == [["/bin/go"]]


def test_an_agent_that_is_started_again_while_its_guest_is_frozen_thaws_it_and_it_does_not_count() -> None:
    forgetful, away = Guest(), Guest(guest_fsfreeze_status=["silent"] * 3, guest_fsfreeze_thaw=["silent"] * 3)

    def start_again() -> None:
        forgetful.forgot = True

    outcomes = frozen({"a": forgetful, "b": away}, during=start_again)
    assert "its agent was started again" in outcomes["a"].reason
    assert "the thaw failed" in outcomes["b"].reason
    assert not forgetful.frozen
    assert not away.frozen


def test_a_thaw_that_did_nothing_is_not_believed() -> None:
    guest = Guest()
    guest.thaws = False
    with pytest.raises(Retry, match="may still be frozen"):
        frozen({"a": guest})


def test_a_later_life_thaws_a_guest_whose_agent_forgot_that_it_is_frozen() -> None:
    guest = Guest()
    guest.frozen = guest.forgot = True
    assert freezing.thaw(guest)
    assert not guest.frozen


def test_an_error_of_the_point_does_not_hide_a_guest_that_stays_frozen() -> None:
    guest = Guest(guest_fsfreeze_thaw=["silent"] * 999)
    with pytest.raises(Retry) as caught:
        frozen({"a": guest}, during=lambda: {}["the point"])
    assert caught.value.code == "machine-frozen"
    assert isinstance(caught.value.__context__, KeyError)


def test_one_that_cannot_be_thawed_is_named_after_all_others_were() -> None:
    stuck, other = Guest(guest_fsfreeze_thaw=["silent"] * 999), Guest()
    with pytest.raises(Retry) as caught:
        frozen({"a": stuck, "b": other})
    assert (caught.value.code, caught.value.evidence["machines"]) == ("machine-frozen", ["a"])
    assert not other.frozen
    stuck.faults.clear()
    assert freezing.thaw(stuck)
    assert not freezing.thaw(stuck)


def test_an_error_of_the_point_thaws_all_and_stays_the_error() -> None:
    guest = Guest()

    def fail() -> None:
        raise KeyError("the point")

    with pytest.raises(KeyError, match="the point"):
        frozen({"a": guest}, during=fail)
    assert not guest.frozen


class Hypervisor:
    """Knows guests by their ids; they are on, and no backup of them runs."""

    def __init__(self, guests: dict[str, Guest]) -> None:
        self.guests = guests

    def domain(self, machine_id: str) -> Guest:
        return self.guests[machine_id]


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Guest], KvmSource]:
    """Return a source that finds the record of a point over which an earlier life froze a guest."""
    monkeypatch.setattr(machines, "power", lambda _handle: "on")
    monkeypatch.setattr(backup, "socket_of", lambda _handle: None)
    monkeypatch.setattr(KvmSource, "_forget_point", lambda *_: None)

    def make(guest: Guest) -> KvmSource:
        found = KvmSource(cast("Any", Hypervisor({"a": guest})), tmp_path, Launcher(tmp_path / "daemons"))
        machine = MachineRecord(machine_id="a", running=True, socket="s")
        found._points.save(PointRecord(point_id="pt-1", group_id="g", machines=(machine,), frozen=("a",)))
        return found

    return make


def test_a_sweep_thaws_what_an_earlier_life_froze_and_forgets_it(left: Callable[[Guest], KvmSource]) -> None:
    guest = Guest()
    guest.frozen = True
    source = left(guest)
    assert source.sweep([]) == ["pt-1"]
    assert not guest.frozen
    assert list(source._points.all()) == []


def test_a_guest_that_cannot_be_asked_is_remembered_until_it_can(left: Callable[[Guest], KvmSource]) -> None:
    guest = Guest(guest_fsfreeze_thaw=["silent"] * 2)
    guest.frozen = True
    source = left(guest)
    source.sweep([])
    source.sweep([])
    assert [record.frozen for record in source._points.all()] == [("a",)]
    source.sweep([])
    assert not guest.frozen
    assert list(source._points.all()) == []


def test_a_guest_whose_agent_never_answers_is_given_up_at_last(
    left: Callable[[Guest], KvmSource], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = left(Guest(guest_fsfreeze_thaw=["silent"] * 9))
    source.sweep([])
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 901.0)
    source.sweep([])
    assert list(source._points.all()) == []
    assert "may be frozen since point pt-1" in caplog.text


ways = st.lists(st.sampled_from(FAULTS), max_size=3)
guests_at_random = st.builds(
    Guest, guest_ping=ways, guest_fsfreeze_freeze=ways, guest_fsfreeze_status=ways, guest_fsfreeze_thaw=ways
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(guests_at_random, min_size=1, max_size=4))
def test_whatever_fails_none_counts_that_was_not_frozen_and_none_stays_so_unnoticed(guests: list[Guest]) -> None:
    named = {str(number): guest for number, guest in enumerate(guests)}
    held: dict[str, bool] = {}
    stuck: set[str] = set()
    outcomes: dict[str, freezing.Frozen] = {}
    try:
        with freezing.frozen(list(named.items()), {}) as outcomes:
            held = {name: guest.frozen for name, guest in named.items()}
    except Retry as error:
        stuck = set(error.evidence["machines"])
    for name, guest in named.items():
        assert not guest.frozen or name in stuck
        assert outcomes[name].reason or held[name]
