"""What is set on sockets, read from them, and said of the system that they are in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.errors import Invalid
from farshore.transport import sockets
from farshore.units import MIB


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        with one, other:
            yield one, other


def test_what_a_connection_carried_is_known(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    sockets.prepare(one)
    one.sendall(b"x" * 5000)
    left = 5000
    while left:
        left -= len(other.recv(left))
    assert sockets.wire_of(one).sent_bytes == sockets.wire_of(other).received_bytes == 5000
    rtt = sockets.wire_of(one).rtt_s
    assert rtt is not None
    assert 0 < rtt < 5


def test_small_things_are_not_held_back(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    sockets.prepare(one)
    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_hanging_up_may_be_repeated(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    sockets.hang_up(one)
    sockets.hang_up(one)
    assert other.recv(1) == b""
    one.close()
    sockets.hang_up(one)


def test_long_ways_get_more_connections() -> None:
    assert [sockets.connections_for(rtt) for rtt in (None, 0.0001, 0.149, 0.15, 2.0)] == [8, 8, 8, 16, 16]


def test_on_a_short_way_no_more_connections_work_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_PROCESSORS", 4)
    assert [sockets.at_work(rtt) for rtt in (0.00001, 0.0009)] == [4, 4]
    assert sockets.at_work(0.0001, here=True) == 2
    assert all(sockets.at_work(rtt, here=here) > 1000 for rtt in (None, 0.001, 0.2) for here in (True, False))
    monkeypatch.setattr(sockets, "_PROCESSORS", 1)
    assert (sockets.at_work(0.0001), sockets.at_work(0.0001, here=True)) == (2, 1)


def test_settings_that_slow_a_long_link_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_SYSCTL", tmp_path)
    (tmp_path / "tcp_rmem").write_text(f"4096 131072 {6 * MIB}\n")
    (tmp_path / "tcp_wmem").write_text(f"4096\t16384\t{MIB // 4}\n")
    (tmp_path / "tcp_available_congestion_control").write_text("reno cubic\n")
    (tmp_path / "tcp_slow_start_after_idle").write_text("1\n")
    names = [hint.split()[0] for hint in sockets.hints()]
    assert names == ["net.ipv4.tcp_wmem", "The", "net.ipv4.tcp_slow_start_after_idle"]
    assert [hint.split()[0] for hint in sockets.hints(0.0005)] == names[1:]
    assert "net.ipv4.tcp_rmem" in sockets.hints(1.0)[0]
    (tmp_path / "tcp_available_congestion_control").write_text("reno cubic bbr\n")
    (tmp_path / "tcp_wmem").write_text(f"4096\t16384\t{64 * MIB}\n")
    (tmp_path / "tcp_slow_start_after_idle").write_text("0\n")
    assert sockets.hints() == []


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:-1", "host:65536", "host:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        sockets.parse_address(text, "somewhere")
    assert caught.value.field == "somewhere"


def test_addresses_of_both_families() -> None:
    assert sockets.parse_address("[::1]:9101", "x") == ("::1", 9101)
    assert sockets.parse_address("node.example:9101", "x") == ("node.example", 9101)
