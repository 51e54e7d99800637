"""Layers of a pool, written by real storage daemons. Needs QEMU's tools, neither root nor a hypervisor."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farshore import durable
from farshore.errors import Conflict, Invalid, NoSpace, NotFound, Retry
from farshore.platforms.kvm import connection, images, thinning, tracking
from farshore.platforms.kvm.target import KvmDraft, KvmTarget
from farshore.platforms.nbd.launcher import Launcher
from farshore.units import KIB, MIB

SIZE = 4 * MIB
DISK = "6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11/vda"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "d")
    yield launcher
    for key in list(launcher.keys()):
        launcher.stop(key)


@pytest.fixture
def target(tmp_path: Path, launcher: Launcher) -> KvmTarget:
    return KvmTarget(tmp_path / "pool", launcher)


def put(draft: KvmDraft, offset: int, data: bytes) -> None:
    draft.write(offset, memoryview(data))


def layer(target: KvmTarget, key: str, base: str | None, *writes: tuple[int, bytes], size: int = SIZE) -> str:
    draft = target.open(DISK, size, base, key)
    for offset, data in writes:
        put(draft, offset, data)
    return draft.seal()


def content(target: KvmTarget, point: str, size: int = SIZE) -> bytes:
    buffer = bytearray(size)
    target.read_into(point, 0, memoryview(buffer))
    return bytes(buffer)


def disk(*writes: tuple[int, bytes], size: int = SIZE) -> bytes:
    data = bytearray(size)
    for offset, part in writes:
        data[offset : offset + len(part)] = part
    return bytes(data)


A = (0, b"a" * 64 * KIB)
B = (32 * KIB, b"b" * 64 * KIB)
C = (MIB + 512, b"c" * 1024)


def test_a_point_holds_its_own_writes_over_its_base(target: KvmTarget) -> None:
    first = layer(target, "k1", None, A)
    second = layer(target, "k2", first, B)
    third = layer(target, "k3", second, C)
    assert content(target, first) == disk(A)
    assert content(target, second) == disk(A, B)
    assert content(target, third) == disk(A, B, C)
    assert target.points() == sorted([first, second, third])
    path = target.path(third)
    assert not path.stat().st_mode & 0o222
    said = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True).stdout
    )
    assert said["backing-filename"] == target.path(second).name, "relative, so that the pool can be moved"
    subprocess.run(["qemu-img", "check", "-q", path], check=True)


def test_zeroes_hide_the_base_and_take_no_space(target: KvmTarget) -> None:
    first = layer(target, "k1", None, (0, os.urandom(2 * MIB)))
    draft = target.open(DISK, SIZE, first, "k2")
    draft.write_zeroes(0, 2 * MIB)
    second = draft.seal()
    assert content(target, second) == bytes(SIZE)
    assert target.path(second).stat().st_blocks * 512 < MIB


def test_the_same_key_finds_the_same_draft_then_the_same_point(target: KvmTarget) -> None:
    draft = target.open(DISK, SIZE, None, "k")
    put(draft, *A)
    draft.flush()
    draft.close()
    again = target.open(DISK, SIZE, None, "k")
    buffer = bytearray(SIZE)
    again.read_into(0, memoryview(buffer))
    assert buffer == disk(A)
    assert target.points() == ["draft:k"]
    point = again.seal()
    assert again.seal() == point
    sealed = target.open(DISK, SIZE, None, "k")
    assert sealed.seal() == point
    with pytest.raises(Conflict):
        put(sealed, *B)
    with pytest.raises(Conflict):
        put(again, *B)
    sealed.abandon()
    assert target.has(point)
    target.open(DISK, SIZE, None, "other")
    with pytest.raises(Conflict) as caught:
        target.open(DISK, 2 * SIZE, None, "other")
    assert caught.value.code == "draft-mismatch"


def test_what_a_flush_covered_outlives_the_daemon_and_the_process(target: KvmTarget, tmp_path: Path) -> None:
    draft = target.open(DISK, SIZE, None, "k")
    put(draft, *A)
    draft.flush()
    # The same launcher folder and pool, as after kill -9 of our process.
    launcher = Launcher(tmp_path / "d")
    [key] = launcher.keys()
    daemon = launcher.find(key)
    assert daemon
    pid = daemon.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Retry) as caught:
        put(draft, *B)
    assert caught.value.code == "draft-lost"
    later = KvmTarget(tmp_path / "pool", launcher)
    assert list(launcher.keys()) == []
    again = later.open(DISK, SIZE, None, "k")
    put(again, *C)
    assert content(later, again.seal()) == disk(A, C)


def test_names_that_a_process_died_over_are_made_durable(target: KvmTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = durable.fsync_dir
    monkeypatch.setattr(durable, "fsync_dir", lambda path: (synced.append(path), real(path)))
    target.open("web/vda", SIZE, None, "key").close()
    synced.clear()
    draft = target.open("web/vda", SIZE, None, "key")
    assert draft.layer.folder in synced, "the draft's"
    draft.close()
    draft.layer.draft.rename(draft.layer.sealed)
    synced.clear()
    draft = target.open("web/vda", SIZE, None, "key")
    assert draft.seal() == draft.layer.point
    assert draft.layer.folder in synced, "the point's"


def test_a_reader_outlives_its_daemon(target: KvmTarget, launcher: Launcher) -> None:
    point = layer(target, "k", None, A)
    assert content(target, point) == disk(A)
    launcher.stop(f"point:{point}")
    assert content(target, point) == disk(A)
    target.close()
    assert list(launcher.keys()) == []


def test_the_newest_handle_owns_a_draft(target: KvmTarget) -> None:
    first = target.open(DISK, SIZE, None, "k")
    second = target.open(DISK, SIZE, None, "k")
    with pytest.raises(Conflict):
        put(first, *A)
    put(second, *A)
    first.close()
    put(second, *B)
    assert content(target, second.seal()) == disk(A, B)


def test_a_draft_is_written_by_many_threads(target: KvmTarget) -> None:
    draft = target.open(DISK, SIZE, None, "k")
    parts = [(n * 64 * KIB, bytes([n + 1]) * 64 * KIB) for n in range(SIZE // (64 * KIB))]
    queue = iter(parts)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                part = next(queue, None)
            if part is None:
                return
            put(draft, *part)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(target, draft.seal()) == disk(*parts)


def test_abandoned_drafts_leave_nothing(target: KvmTarget, launcher: Launcher) -> None:
    target.open(DISK, SIZE, None, "k1").abandon()
    draft = target.open(DISK, SIZE, None, "k2")
    target.abandon("k2")
    target.abandon("k2")
    with pytest.raises(Conflict):
        put(draft, *A)
    assert target.points() == []
    assert [path for path in target.layers.pool.rglob("*") if path.is_file()] == []
    assert list(launcher.keys()) == []


def test_names_what_is_missing_or_wrong(target: KvmTarget) -> None:
    with pytest.raises(NotFound):
        target.open(DISK, SIZE, f"{DISK}/none", "k")
    for key in ("nodisk", "../x/vda", "leases/vda", "m/..", "m/a/b"):
        with pytest.raises(Invalid):
            target.open(key, SIZE, None, "k")
    with pytest.raises(Invalid):
        target.open(DISK, 1000, None, "k")
    for point in ("../../etc/passwd", "", "a/b/../c", "recovered/x/y"):
        assert not target.has(point)
        with pytest.raises(NotFound):
            target.drop(point)
    target.drop(f"{DISK}/none")
    with pytest.raises(NotFound):
        target.lease(f"{DISK}/none", "run")
    with pytest.raises(NotFound):
        target.read_into(f"{DISK}/none", 0, memoryview(bytearray(512)))


def test_a_grown_disk_reads_as_zero_behind_its_base(target: KvmTarget) -> None:
    first = layer(target, "k1", None, A)
    second = layer(target, "k2", first, (SIZE, b"new" * 100), size=2 * SIZE)
    assert content(target, second, 2 * SIZE) == disk(A, (SIZE, b"new" * 100), size=2 * SIZE)
    target.drop(first)
    assert content(target, second, 2 * SIZE) == disk(A, (SIZE, b"new" * 100), size=2 * SIZE)


def test_drop_keeps_what_stands_above_and_below(target: KvmTarget) -> None:
    points = [layer(target, "k0", None, A)]
    points.append(layer(target, "k1", points[0], B))
    points.append(layer(target, "k2", points[1], C))
    before = [content(target, point) for point in points]
    target.drop(points[1])
    target.drop(points[1])
    assert not target.has(points[1])
    assert [content(target, points[0]), content(target, points[2])] == [before[0], before[2]]
    assert images.header(target.path(points[2])).backing == target.path(points[0])
    assert not target.path(points[2]).stat().st_mode & 0o222
    target.drop(points[0])
    assert content(target, points[2]) == before[2]
    assert images.header(target.path(points[2])).backing is None
    target.drop(points[2])
    assert target.points() == []


def test_a_leased_point_stays_and_so_does_what_carries_one(target: KvmTarget) -> None:
    first = layer(target, "k1", None, A)
    second = layer(target, "k2", first, B)
    target.lease(second, "run-1")
    target.lease(second, "run-1")
    target.lease(second, "run-2")
    for point in (first, second):
        with pytest.raises(Conflict) as caught:
            target.drop(point)
        assert caught.value.evidence["holders"] == ["run-1", "run-2"]
    target.release("run-1")
    target.release("run-1")
    with pytest.raises(Conflict):
        target.drop(second)
    target.release("run-2")
    target.drop(first)
    target.drop(second)


def test_the_disk_of_a_recovered_machine_keeps_its_point(target: KvmTarget) -> None:
    point = layer(target, "k1", None, A)
    overlay = target.layers.recovered / "run-1" / "web-vda.qcow2"
    overlay.parent.mkdir()
    images.create(overlay, SIZE, target.path(point))
    with pytest.raises(Conflict) as caught:
        target.drop(point)
    assert caught.value.code == "point-leased"
    overlay.unlink()
    target.drop(point)


def test_drop_is_put_off_while_the_layer_above_is_open_elsewhere(target: KvmTarget, launcher: Launcher) -> None:
    first = layer(target, "k1", None, A)
    second = layer(target, "k2", first, B)
    launcher.start("somebody", [images.node("disk", target.path(second))], [])
    for refused in (target.check_drop, target.drop):
        with pytest.raises(Conflict) as caught:
            refused(first)
        assert caught.value.code == "image-in-use"
        assert target.has(first)
    launcher.stop("somebody")
    target.check_drop(first)
    assert target.path(first).stat().st_mode & 0o777 == 0o440
    draft = target.open(DISK, SIZE, first, "k3")
    for refused in (target.check_drop, target.drop):
        with pytest.raises(Conflict):
            refused(first)
    put(draft, *C)
    third = draft.seal()
    target.drop(first)
    assert content(target, second) == disk(A, B)
    assert content(target, third) == disk(A, C)


def test_a_base_that_was_read_for_a_cycle_is_dropped_by_another_process_afterwards(
    target: KvmTarget, tmp_path: Path
) -> None:
    other = KvmTarget(tmp_path / "pool", Launcher(tmp_path / "d1"))
    first = layer(target, "k1", None, A, B)
    second = layer(target, "k2", first, C)
    draft = other.open(DISK, SIZE, second, "k3")
    assert content(other, first) == disk(A, B)
    put(draft, *C)
    third = draft.seal()
    target.drop(first)
    assert content(other, second) == disk(A, B, C)
    layer(other, "k4", third, B)
    target.drop(second)
    assert content(target, third) == disk(A, B, C)
    other.close()


class Killed(BaseException):
    pass


def killed(*_: object, **__: object) -> None:
    raise Killed


BIG = (2 * MIB, random.Random(1).randbytes(MIB))


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("step", ["half", "copied", "committed"])
def test_a_drop_that_was_cut_short_is_finished_by_the_next(
    target: KvmTarget, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, step: str, direction: str
) -> None:
    sizes = {"up": [A, BIG], "down": [BIG, A]}[direction]
    points = [layer(target, "k0", None, (0, b"base" * 64 * KIB))]
    points.append(layer(target, "k1", points[0], sizes[0], B))
    points.append(layer(target, "k2", points[1], sizes[1], C))
    points.append(layer(target, "k3", points[2], (3 * MIB, b"top")))
    before = [content(target, point) for point in points]
    folder = target.path(points[0]).parent
    inodes = {target.path(point).name: target.path(point).stat().st_ino for point in points}

    with monkeypatch.context() as patch:
        if step == "half":
            patch.setattr("farshore.platforms.nbd.client.Connection.flush", killed)
        elif step == "copied":
            patch.setattr(images, "fsync", killed)
        else:
            patch.setattr("farshore.durable.remove", killed)
        with pytest.raises(Killed):
            target.drop(points[1])
    others = [0, 2, 3] + [1] * target.has(points[1])  # as long as it is offered, it is whole
    assert [content(target, points[n]) for n in others] == [before[n] for n in others]
    target.drop(points[1])
    others = [0, 2, 3]
    assert [content(target, points[n]) for n in others] == [before[n] for n in others]
    assert target.points() == sorted(points[n] for n in others)
    assert sorted(path.name for path in folder.glob("*.json")) == sorted(
        f"{target.path(points[n]).stem}.json" for n in others
    )
    moved = target.path(points[2]).stat().st_ino == inodes[f"{points[1].rpartition('/')[2]}.qcow2"]
    assert moved == (direction == "down")
    assert not any(key.startswith(thinning.KEY) for key in list(launcher.keys()))


def test_any_history_of_writes_and_drops_reads_as_a_model_says(target: KvmTarget) -> None:
    rng = random.Random(7)
    size = MIB + 12 * KIB + 512  # ends inside a cluster and inside a subcluster
    model: dict[str, bytes] = {}
    newest: str | None = None
    for turn in range(14):
        draft = target.open(DISK, size, newest, f"k{turn}")
        now = bytearray(model[newest]) if newest else bytearray(size)
        for _ in range(rng.randrange(8)):
            offset = rng.randrange(0, size, 512)
            length = min(rng.choice([512, 4096, 5120, 128 * KIB, 300 * KIB]), size - offset)
            if rng.random() < 0.4:
                draft.write_zeroes(offset, length)
                now[offset : offset + length] = bytes(length)
            else:
                data = rng.randbytes(length)
                put(draft, offset, data)
                now[offset : offset + length] = data
        newest = draft.seal()
        model[newest] = bytes(now)
        if len(model) > 4:
            victim = rng.choice([point for point in model if point != newest])
            target.drop(victim)
            del model[victim]
    assert target.points() == sorted(model)
    for point, data in model.items():
        assert content(target, point, size) == data
        subprocess.run(["qemu-img", "check", "-q", target.path(point)], check=True)


def fill(draft: KvmDraft) -> None:
    for n in range(16):
        put(draft, n * MIB, os.urandom(MIB))
    draft.flush()


def test_a_full_pool_is_told_as_such(tmp_path: Path, launcher: Launcher) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        target = KvmTarget(small / "pool", launcher)
        draft = target.open(DISK, 64 * MIB, None, "k")
        with pytest.raises(NoSpace):
            fill(draft)
        draft.abandon()
        assert target.usage().free_bytes > MIB
        target.close()
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_child_that_is_sealed_during_the_look_is_found_once(
    target: KvmTarget, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    base = layer(target, "k1", None, A)
    draft = target.open(DISK, SIZE, base, "k2")
    read = images.header

    def header(path: Path) -> images.Header:
        if path != draft.layer.draft:
            return read(path)
        found = read(path) if moment == "after" else None
        draft.seal()
        return found or read(path)

    monkeypatch.setattr(images, "header", header)
    children, used = target.layers.children(target.layers.of_point(base))
    assert children == [(draft.layer, draft.layer.sealed)]
    assert used == []


@pytest.mark.parametrize("ask", [tracking.disks_of, tracking._forget_online])
def test_what_libvirt_refuses_is_told_by_duty(ask: Callable[[Any, str], object]) -> None:
    class Refusing:
        def checkpointLookupByName(self, _name: str) -> None:  # noqa: N802  libvirt's name
            raise connection.libvirt.libvirtError("the daemon went away")

    with pytest.raises(Retry):
        ask(Refusing(), "farshore-pt-1")
