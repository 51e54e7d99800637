"""The NBD client against qemu-storage-daemon, and against a peer that breaks the rules."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farshore.errors import NoSpace, NotFound, Permanent, Reconnect, Retry, Unavailable
from farshore.platforms.nbd import protocol as p
from farshore.platforms.nbd.client import FLUSH_TIMEOUT_S, TIMEOUT_S, Connection
from farshore.platforms.nbd.launcher import Export, Launcher, StorageDaemon
from farshore.platforms.nbd.pool import Pool
from farshore.units import KIB, MIB

SIZE = 8 * MIB


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


def qcow2(path: Path) -> dict[str, object]:
    return {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(path)}}


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "d")
    yield launcher
    for key in list(launcher.keys()):
        launcher.stop(key)


@pytest.fixture
def daemon(tmp_path: Path, launcher: Launcher) -> StorageDaemon:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    qemu_img("bitmap", "--add", "-g", "65536", image, "b1")
    subprocess.run(["qemu-io", "-c", "write -P 7 1M 128k", str(image)], check=True, capture_output=True)
    export = Export("disk", "d", writable=True, bitmaps=("b1",), depth=True)
    return launcher.start("one", [qcow2(image)], [export])


def test_reads_what_was_written_through_another_connection(daemon: StorageDaemon) -> None:
    writer, reader = daemon.connect("d"), daemon.connect("d")
    assert writer.size_bytes == SIZE
    assert writer.can_multi_conn
    data = bytes(range(256)) * 400
    writer.write(512, data)
    writer.flush()
    buffer = bytearray(len(data) + 512)
    reader.read_into(0, memoryview(buffer))
    assert bytes(buffer) == bytes(512) + data
    writer.write_zeroes(512, 4096)
    reader.read_into(512, memoryview(buffer)[:8192])
    assert bytes(buffer[:8192]) == bytes(4096) + data[4096:8192]
    for connection in (writer, reader):
        connection.close()


def test_reads_more_than_one_request_carries(daemon: StorageDaemon) -> None:
    connection = daemon.connect("d")
    connection.max_payload_bytes = 64 * KIB
    data = b"".join(struct.pack(">Q", n) for n in range(MIB // 8))
    connection.write(3 * MIB, data)
    buffer = bytearray(MIB)
    connection.read_into(3 * MIB, memoryview(buffer))
    assert buffer == data
    connection.close()


def test_block_status_names_allocation_bitmap_and_depth(daemon: StorageDaemon) -> None:
    contexts = (p.ALLOCATION, p.dirty_bitmap("b1"), p.ALLOCATION_DEPTH)
    connection = daemon.connect("d", contexts)
    found = {c: [(s.offset, s.length, s.flags) for s in connection.block_status(c)] for c in contexts}
    hole = p.STATE_HOLE | p.STATE_ZERO
    written, end = (MIB, 128 * KIB), MIB + 128 * KIB
    assert found[p.ALLOCATION] == [(0, MIB, hole), (*written, 0), (end, SIZE - end, hole)]
    assert found[p.dirty_bitmap("b1")] == [(0, MIB, 0), (*written, p.STATE_DIRTY), (end, SIZE - end, 0)]
    assert found[p.ALLOCATION_DEPTH] == [(0, MIB, 0), (*written, 1), (end, SIZE - end, 0)]
    part = list(connection.block_status(p.ALLOCATION, MIB + 64 * KIB, MIB))
    assert [(s.offset, s.length, s.flags) for s in part] == [
        (MIB + 64 * KIB, 64 * KIB, 0),
        (end, MIB - 64 * KIB, hole),
    ]
    connection.close()


def test_names_what_does_not_exist(daemon: StorageDaemon, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no export 'other'"):
        daemon.connect("other")
    with pytest.raises(NotFound) as caught:
        daemon.connect("d", [p.dirty_bitmap("gone")])
    assert caught.value.code == "nbd-context"
    with pytest.raises(Unavailable):
        Connection(tmp_path / "nobody", "d")


def test_refuses_a_range_behind_the_end_and_stays_usable(daemon: StorageDaemon) -> None:
    connection = daemon.connect("d")
    for call in (
        lambda: connection.read_into(SIZE - 10, memoryview(bytearray(11))),
        lambda: connection.write(SIZE, b"x"),
        lambda: connection.write_zeroes(-1, 5),
    ):
        with pytest.raises(Permanent) as caught:
            call()
        assert caught.value.code == "out-of-bounds"
    connection.read_into(SIZE - 10, memoryview(bytearray(10)))
    connection.close()


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, NoSpace), (errno.EIO, Retry), (errno.EPERM, Permanent)])
def test_maps_what_the_disk_says_and_stays_usable(
    tmp_path: Path, launcher: Launcher, number: int, error: type[Exception]
) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(MIB))
    broken = {"event": "none", "iotype": "write", "errno": number, "sector": 8}
    node = {
        "driver": "blkdebug",
        "node-name": "disk",
        "image": {"driver": "file", "filename": str(image)},
        "inject-error": [broken],
    }
    connection = launcher.start("broken", [node], [Export("disk", "d", writable=True)]).connect("d")
    with pytest.raises(error):
        connection.write(4096, bytes(512))
    connection.write(0, b"y" * 512)
    connection.close()


def test_a_server_that_dies_ends_the_connection(daemon: StorageDaemon, launcher: Launcher) -> None:
    pool = Pool(lambda: daemon.connect("d"), limit=2)
    with pool.lend() as connection:
        connection.read_into(0, memoryview(bytearray(512)))
    launcher.stop("one")
    with pytest.raises(Reconnect), pool.lend() as connection:
        connection.read_into(0, memoryview(bytearray(512)))
    with pytest.raises(Unavailable), pool.lend():
        pass


def test_pool_keeps_a_connection_after_a_told_error_and_lends_at_most_its_limit(daemon: StorageDaemon) -> None:
    opened: list[Connection] = []

    def connect() -> Connection:
        opened.append(daemon.connect("d"))
        return opened[-1]

    pool = Pool(connect, limit=2)
    with pytest.raises(Permanent), pool.lend() as connection:
        connection.write(SIZE, b"x")
    barrier = threading.Barrier(2)

    def work() -> None:
        for _ in range(20):
            with pool.lend() as connection:
                connection.read_into(0, memoryview(bytearray(512)))
        barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) <= 2
    pool.close()
    with pytest.raises(Reconnect), pool.lend():
        pass


# --- a peer that breaks the rules --------------------------------------------------------------------------------


def _export_info(size: int) -> bytes:
    return struct.pack(">HQH", p.Info.EXPORT, size, int(p.ExportFlag.SEND_FLUSH))


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def _take(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data))
    return data


def _serve(sock: socket.socket, answer: Callable[[int], bytes]) -> None:
    with sock:
        sock.sendall(p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE | p.NO_ZEROES))
        _take(sock, 4)
        for _ in range(2):
            _, option, length = p.OPTION.unpack(_take(sock, p.OPTION.size))
            _take(sock, length)
            if option == p.Option.GO:
                sock.sendall(_reply(option, p.OptionReply.INFO, _export_info(4096)))
            sock.sendall(_reply(option, p.OptionReply.ACK))
        cookie = p.REQUEST.unpack(_take(sock, p.REQUEST.size))[3]
        sock.sendall(answer(cookie))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[Callable[[int], bytes]], Connection]]:
    threads: list[threading.Thread] = []

    def listen(answer: Callable[[int], bytes]) -> Connection:
        path = tmp_path / "peer"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=lambda: _serve(server.accept()[0], answer))
        thread.start()
        threads.append(thread)
        connection = Connection(path, "d")
        server.close()
        return connection

    yield listen
    for thread in threads:
        thread.join()


def chunk(cookie: int, kind: int, data: bytes, *, done: bool) -> bytes:
    return struct.pack(">I", p.CHUNK_MAGIC) + p.CHUNK.pack(p.DONE if done else 0, kind, cookie, len(data)) + data


def at(offset: int, data: bytes) -> bytes:
    return struct.pack(">Q", offset) + data


def test_chunks_may_come_in_any_order_and_as_holes(peer: Callable[..., Connection]) -> None:
    def answer(cookie: int) -> bytes:
        return (
            chunk(cookie, p.Chunk.OFFSET_DATA, at(2048, b"c" * 1024), done=False)
            + chunk(cookie, p.Chunk.OFFSET_HOLE, struct.pack(">QI", 1024, 1024), done=False)
            + chunk(cookie, p.Chunk.OFFSET_DATA, at(0, b"a" * 1024), done=True)
        )

    buffer = bytearray(b"x" * 3072)
    peer(answer).read_into(0, memoryview(buffer))
    assert buffer == b"a" * 1024 + bytes(1024) + b"c" * 1024


@pytest.mark.parametrize(
    "answer",
    [
        lambda c: chunk(c, p.Chunk.OFFSET_DATA, at(0, b"a" * 100), done=True),  # too little
        lambda c: chunk(c, p.Chunk.OFFSET_DATA, at(1, b"a" * 1024), done=True),  # another place
        lambda c: chunk(c + 1, p.Chunk.OFFSET_DATA, at(0, b"a" * 1024), done=True),  # another request
        lambda c: chunk(c, 77, b"", done=True),  # unknown chunk
        lambda _: b"nonsense",
        lambda _: b"",
    ],
)
def test_never_takes_bytes_that_are_not_the_answer(
    peer: Callable[..., Connection], answer: Callable[[int], bytes]
) -> None:
    with pytest.raises(Reconnect):
        peer(answer).read_into(0, memoryview(bytearray(1024)))


def test_a_flush_may_take_longer_than_anything_else(peer: Callable[..., Connection]) -> None:
    seen: list[float | None] = []

    def answer(cookie: int) -> bytes:
        seen.append(connection._socket.gettimeout())
        return chunk(cookie, p.Chunk.NONE, b"", done=True)

    connection = peer(answer)
    connection.flush()
    assert seen == [FLUSH_TIMEOUT_S]
    assert connection._socket.gettimeout() == TIMEOUT_S
    connection.close()


def test_a_connection_lost_in_a_flush_is_told_as_lost(peer: Callable[..., Connection]) -> None:
    connection = peer(lambda _cookie: b"")
    with pytest.raises(Reconnect):
        connection.flush()
