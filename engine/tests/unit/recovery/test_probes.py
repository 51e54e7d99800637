import base64
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
from farshore.errors import FarshoreError, NotFound, Permanent, Retry
from farshore.model.plan import ConsoleProbe, HttpProbe, TcpProbe
from farshore.model.task import ProbeOutcome
from farshore.platforms.aws import probing
from farshore.platforms.contract import Answer, Compute, Reach
from farshore.recovery.probes import runner
from farshore.recovery.probes.relayed import Relay
from farshore.recovery.probes.sight import EVIDENCE_LIMIT_BYTES, clean

#: What a server does with one connection.
Serve = Callable[[socket.socket], None]


@contextmanager
def serving(*handlers: Serve) -> Iterator[int]:
    """Run a real listener: the n-th connection gets the n-th handler, later ones the last."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def accept() -> None:
        number = 0
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            handler = handlers[min(number, len(handlers) - 1)]
            number += 1
            threading.Thread(target=attend, args=(handler, connection), daemon=True).start()

    def attend(handler: Serve, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handler(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def sends(data: bytes) -> Serve:
    return lambda connection: connection.sendall(data)


def answers(data: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        connection.sendall(data)

    return serve


def resets(connection: socket.socket) -> None:
    """Accept, then reset: what a user-mode network does when nobody listens behind it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def is_mute(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.recv(65536)


def drips(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: y\r\n")
        threading.Event().wait(0.01)


class Clock:
    """Time that passes only when somebody waits, a little with each look."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        self.now += 0.001
        return self.now

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return False


class Console:
    """A machine whose console grows with each look."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def console(self, _machine_id: str, _tail_bytes: int = 0) -> str:
        return self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]


def try_all(*probes: Any, compute: Any = None, clock: Clock | None = None, address: str | None = "127.0.0.1"):
    ticks = clock or Clock()
    return runner.run(
        probes,
        machine_id="vm",
        compute=cast("Compute | None", compute),
        address=lambda: address,
        clock=ticks,
        wait=ticks.wait,
    )


def try_one(probe: Any, **options: Any) -> ProbeOutcome:
    (outcome,) = try_all(probe, **options)
    return outcome


def http(port: int, **options: Any) -> HttpProbe:
    return HttpProbe(type="http", port=port, timeout=options.pop("timeout", 0.5), interval=0.1, **options)


def tcp(port: int, banner: str = "SSH-2.0", timeout: float = 0.5) -> TcpProbe:
    return TcpProbe(type="tcp", port=port, banner=banner, timeout=timeout, interval=0.1)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nrow=7"


def test_http_is_green_when_status_and_body_are_right():
    with serving(answers(OK)) as port:
        outcome = try_one(http(port, contains="row=7", path="/db?x=1"))
    assert outcome.green
    assert outcome.tries == 1
    assert outcome.target == f"http://127.0.0.1:{port}/db?x=1"
    assert "row=7" in outcome.evidence


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nrow=7", "status 500, not 200"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope", "body lacks the text"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "status 302, not 200"),
        (b"SSH-2.0-x\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nrow=7", "45 bytes are missing"),
        (b"", "no HTTP"),
    ],
    ids=["status", "body", "redirect", "not http", "cut", "empty"],
)
def test_http_is_red_and_says_why(answer: bytes, reason: str):
    with serving(answers(answer)) as port:
        outcome = try_one(http(port, contains="row=7"))
    assert not outcome.green
    assert reason in outcome.detail
    assert outcome.tries > 1


def test_http_takes_the_body_of_a_chunked_answer():
    with serving(answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nrow=7\r\n0\r\n\r\n")) as port:
        assert try_one(http(port, contains="row=7")).green


def test_a_port_that_accepts_and_resets_is_red():
    with serving(resets) as port:
        assert not try_one(http(port)).green
        outcome = try_one(tcp(port))
    assert not outcome.green
    assert "reset" in outcome.detail.lower() or "closed" in outcome.detail


def test_a_port_that_accepts_and_closes_is_red():
    with serving(lambda _connection: None) as port:
        assert not try_one(tcp(port)).green


def test_a_closed_port_is_red():
    with serving(sends(b"")) as port:
        pass
    outcome = try_one(tcp(port))
    assert not outcome.green
    assert "refused" in outcome.detail


def test_a_mute_port_ends_at_the_deadline():
    # A real clock: the peer says nothing, so only the deadline can end the try.
    for probe_type in (http, tcp):
        with serving(is_mute) as port:
            (outcome,) = runner.run(
                [probe_type(port, timeout=0.2)],
                machine_id="vm",
                compute=None,
                address=lambda: "127.0.0.1",
                clock=time.monotonic,
                wait=threading.Event().wait,
            )
        assert not outcome.green
        assert "time" in outcome.detail.lower()


def test_a_peer_that_drips_headers_for_ever_ends_at_the_deadline():
    with serving(drips) as port:
        (outcome,) = runner.run(
            [http(port, timeout=0.3)],
            machine_id="vm",
            compute=None,
            address=lambda: "127.0.0.1",
            clock=time.monotonic,
            wait=threading.Event().wait,
        )
    assert not outcome.green


def test_tcp_is_green_when_the_banner_comes_in_pieces():
    def pieces(connection: socket.socket) -> None:
        for part in (b"SSH", b"-2", b".0-OpenSSH\r\n"):
            connection.sendall(part)

    with serving(pieces) as port:
        assert try_one(tcp(port)).green


def test_tcp_gives_up_on_a_flood_without_the_banner():
    with serving(sends(b"x" * 200_000)) as port:
        outcome = try_one(tcp(port))
    assert not outcome.green
    assert "no banner" in outcome.detail


def test_tries_are_written_down_and_equal_ones_counted():
    with serving(resets, resets, sends(b"SSH-2.0-x\r\n")) as port:
        outcome = try_one(tcp(port, timeout=60))
    assert outcome.green
    assert outcome.tries == 3
    assert outcome.evidence.count("\n") >= 2
    assert "banner seen" in outcome.evidence


def test_console_is_green_when_the_text_appears():
    outcome = try_one(
        ConsoleProbe(type="console", contains="ready gen=7", timeout=60), compute=Console("boot", "boot\nready gen=7\n")
    )
    assert outcome.green
    assert outcome.tries == 2
    assert "ready gen=7" in outcome.evidence


def test_probes_take_turns_and_each_has_its_own_time():
    clock = Clock()
    short = ConsoleProbe(type="console", contains="never", timeout=3, interval=1)
    long = ConsoleProbe(type="console", contains="never", timeout=9, interval=2)
    outcomes = try_all(short, long, compute=Console("boot"), clock=clock)
    assert [outcome.green for outcome in outcomes] == [False, False]
    assert [outcome.tries for outcome in outcomes] == [3, 5]
    assert outcomes[0].seconds <= 3
    assert outcomes[1].seconds <= 9


def test_without_an_address_a_probe_is_red_and_says_so():
    outcome = try_one(tcp(1), address=None)
    assert not outcome.green
    assert "no known address" in outcome.detail


def test_no_probes_no_outcomes():
    assert try_all() == ()


def test_a_run_that_is_stopped_says_so():
    (outcome,) = runner.run(
        [ConsoleProbe(type="console", contains="x", timeout=60)],
        machine_id="vm",
        compute=cast("Compute", Console("boot")),
        address=lambda: None,
        clock=Clock(),
        wait=lambda _seconds: True,
    )
    assert not outcome.green
    assert "stopped before its end" in outcome.detail


def test_evidence_is_cut_and_cleaned():
    nasty = "\x1b[31mred\x00\u202e" + "é" * 10_000
    with serving(answers(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + nasty.encode())) as port:
        outcome = try_one(http(port))
    assert len(outcome.evidence.encode()) <= EVIDENCE_LIMIT_BYTES
    assert "\x1b" not in outcome.evidence
    assert "\u202e" not in outcome.evidence


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [("aé", 2, "a"), ("a\r\nb", 9, "a\nb"), ("a\tb\nc", 9, "a\tb\nc"), ("\x07", 9, "\ufffd")],
)
def test_clean(text: str, limit: int, expected: str):
    assert clean(text, limit) == expected


def test_a_path_of_a_plan_cannot_add_a_header():
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(OK)

    with serving(serve) as port:
        try_one(http(port, path="/a\x00\x7fü#x"))
    assert seen[0].startswith(b"GET /a%00%7F%C3%BC%23x HTTP/1.1\r\n")


def test_the_address_is_looked_up_when_none_is_given():
    class Platform:
        def addresses(self, machine_id: str) -> list[str]:
            if machine_id == "gone":
                raise NotFound("gone")
            return ["10.77.0.11", "fe80::1"] if machine_id == "vm" else []

    compute = cast("Compute", Platform())
    assert runner.addresses_of(compute, "vm", None)() == "10.77.0.11"
    assert runner.addresses_of(compute, "vm", "10.0.0.1")() == "10.0.0.1"
    assert runner.addresses_of(compute, "other", None)() is None
    assert runner.addresses_of(compute, "gone", None)() is None
    assert runner.addresses_of(None, "vm", None)() is None


class Near:
    """Speaks to ports from this process, by what a helper in AWS is given to run."""

    where = "a helper"

    def exchange(
        self, address: str, port: int, send: bytes, until: bytes, limit_bytes: int, timeout_s: float
    ) -> Answer:
        coded = {"send": base64.b64encode(send), "until": base64.b64encode(until)}
        said = probing.exchange(
            {"address": address, "port": port, "limit": limit_bytes, "seconds": min(timeout_s, 1.0), **coded}
        )
        error = OSError(said["errno"], said["error"]) if "errno" in said else None
        return Answer(zlib.decompress(base64.b64decode(said["data"])), error)


def relayed(probe: Any, find: Callable[[], Reach | None]) -> ProbeOutcome:
    (outcome,) = runner.run(
        [probe.model_copy(update={"retries": 0})],
        machine_id="m",
        compute=None,
        address=lambda: "127.0.0.1",
        clock=time.monotonic,
        wait=threading.Event().wait,
        relay=Relay(find),
    )
    return outcome


@pytest.mark.parametrize(
    "serve",
    [
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nSSH-2.0"),
        answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nSSH-2.0\r\n0\r\n\r\n"),
        answers(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"),
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nSSH-2.0"),
        sends(b"SSH-2.0-OpenSSH\r\n"),
        sends(b"220 mail"),
        sends(b"x" * 200_000),
        resets,
        is_mute,
    ],
)
@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_a_probe_that_somebody_else_tries_ends_as_one_from_here(serve: Serve, kind: str):
    timeout = 30.0 if kind == "http" and serve is not is_mute else 2.0  # what says nothing takes all of it
    with serving(serve) as port:
        probe = http(port, contains="SSH", timeout=timeout) if kind == "http" else tcp(port, timeout=timeout)
        near = relayed(probe, Near)
        here = relayed(probe, lambda: None)
    assert (near.code, near.green) == (here.code, here.green)
    assert "tried by a helper\n" in near.evidence
    assert "tried by" not in here.evidence


def test_a_port_that_is_closed_is_closed_for_somebody_else_too():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = relayed(tcp(port), Near)
    assert (outcome.code, "Connection refused" in outcome.detail) == ("refused", True)


@pytest.mark.parametrize(
    ("error", "code"),
    [(Retry("the helper is slow"), "no-answer"), (Permanent("there is no helper", hint="Name one."), "cannot-try")],
)
def test_why_nobody_can_try_it_is_the_probes_outcome(error: FarshoreError, code: str):
    def find() -> Reach:
        raise error

    outcome = relayed(tcp(1), find)
    assert outcome.code == code
    assert error.message in outcome.detail
