"""The wide-area link that the tests and the benchmarks run over does what its README says.

Only what load cannot change is asserted: a delay is a minimum, a rate a maximum.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.ceiling import payload_rate
from benchmarks.links import WANEM, Shape, Wan
from benchmarks.processes import ProgramFailed, Running, listening

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0 or not WANEM.exists(), reason="needs root and scripts/setup.sh test"),
]

SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000))
while True:
    connection, _ = listener.accept()
    with connection:
        if connection.recv(1) == b"e":      # echo what comes
            while data := connection.recv(65536):
                connection.sendall(data)
        else:                               # count what comes
            count = bad = 0
            while data := connection.recv(1 << 20):
                count += len(data)
                bad += len(data) - data.count(0)
            connection.sendall(b"%d %d" % (count, bad))
"""
PING = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000))
connection.sendall(b"e")
times = []
for _ in range(5):
    begun = time.monotonic()
    connection.sendall(b"x")
    connection.recv(1)
    times.append(time.monotonic() - begun)
print(min(times))
"""
SEND = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000))
begun = time.monotonic()
connection.sendall(b"c" + bytes(int(sys.argv[2])))
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode(), time.monotonic() - begun)
"""


def client(link, text, *words):
    """Run a program at the source's end; what it prints as numbers."""
    argv = link.argv("source", [sys.executable, "-c", text, link.address("target"), *map(str, words)])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return [float(word) for word in done.stdout.split()]


@pytest.fixture
def linked(tmp_path):
    """Make a link with a server at the target's end."""
    opened = []

    def make(*shape):
        link = Wan(Shape(*shape), tmp_path).__enter__()
        opened.append(link)
        server = Running(
            link.argv("target", [sys.executable, "-c", SERVER, link.address("target")]), tmp_path / "server.log"
        )
        opened.append(server)
        listening(server, 7000)
        return link

    yield make
    for one in reversed(opened):
        one.__exit__(None, None, None)


def test_a_link_delays_and_limits_and_counts(linked):
    link = linked(40, 100e6)
    (rtt_s,) = client(link, PING)
    assert rtt_s >= 0.040

    size = 4 << 20
    count, bad, seconds = client(link, SEND, size)
    assert (count, bad) == (size, 0)
    queue = 100e6 / 8 * 0.040  # what the link lets pass at once
    assert (size - queue) / seconds <= payload_rate(100e6)
    sent = link.counters()["source"]
    assert sent["bytes"] >= size
    assert sent["delay_ms"] == 20
    assert sent["lost"] == 0


def test_an_outage_drops_everything_and_ends_again(linked):
    link = linked(2, 0)
    link.set("--loss", "100%")
    with pytest.raises(subprocess.CalledProcessError):
        client(link, "import socket, sys; socket.create_connection((sys.argv[1], 7000), 0.5)")
    assert link.counters()["source"]["lost"] > 0
    link.set("--loss", "0")
    assert client(link, SEND, 1000)[0] == 1000


def test_loss_is_repaired_by_tcp_and_counted(linked):
    link = linked(2, 0, 0.02)
    assert client(link, SEND, 4 << 20)[:2] == [4 << 20, 0]
    assert link.counters()["source"]["lost"] > 0


def test_corruption_reaches_the_reader(linked):
    link = linked(2, 0)
    link.set("--corrupt", "1/0")
    _, bad, _ = client(link, SEND, 1 << 20)
    assert bad > 0
    assert link.counters()["source"]["corrupted"] > 0


def test_nothing_is_left_of_a_link(tmp_path):
    before = {path.name for path in Path("/run/netns").glob("farshore-bench-*")}
    with Wan(Shape(2, 0), tmp_path) as link:
        assert {path.name for path in Path("/run/netns").glob("farshore-bench-*")} - before
    assert {path.name for path in Path("/run/netns").glob("farshore-bench-*")} <= before
    assert not list(Path("/run/wanem").glob(f"farshore-bench-{os.getpid()}-*"))
    with pytest.raises(ProgramFailed):
        link.counters()


def test_a_bad_value_is_refused():
    done = subprocess.run([WANEM, "up", "--rate", "fast", "a", "b"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot read 'fast'" in done.stderr
