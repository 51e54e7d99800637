"""Freezing guests whose agents fail in every way: nobody stays frozen, and nothing counts that was not done."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import libvirt
import pytest
from farshore.errors import Retry
from farshore.model.plan import Quiesce
from farshore.platforms.kvm import freezing
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
            return "frozen" if self.frozen else "thawed"
        if command == "guest-fsfreeze-thaw":
            count, self.frozen = (2 if self.frozen else 0), False
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


def test_one_that_cannot_be_thawed_is_named_after_all_others_were() -> None:
    stuck, other = Guest(guest_fsfreeze_thaw=["silent"] * 9), Guest()
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
