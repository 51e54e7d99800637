import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from farshore import durable


def test_write_replaces_the_whole_file_and_keeps_it_private(tmp_path):
    path = tmp_path / "state"
    durable.write(path, b"first, and longer")
    durable.write(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state"
    durable.write(path, b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_of_many_creators_exactly_one_wins(tmp_path):
    path = tmp_path / "manifest"
    won: list[int] = []
    start = threading.Barrier(8)

    def one(number):
        start.wait()
        if durable.create(path, f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_bytes() == f"writer {won[0]}".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest"]


def test_order_is_data_then_name_then_directory(tmp_path, monkeypatch):
    steps = []
    real_fsync, real_replace = os.fsync, type(tmp_path).replace

    def fsync(fd):
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "data")
        real_fsync(fd)

    def replace(self, target):
        steps.append("name")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(type(tmp_path), "replace", replace)
    durable.write(tmp_path / "state", b"x")
    assert steps == ["data", "name", "directory"]


def test_make_dir_and_remove(tmp_path):
    durable.make_dir(tmp_path / "a" / "b")
    durable.make_dir(tmp_path / "a" / "b")
    durable.write_json(tmp_path / "a" / "b" / "c.json", {"k": 1})
    assert durable.remove(tmp_path / "a" / "b" / "c.json")
    assert not durable.remove(tmp_path / "a" / "b" / "c.json")


def synced(monkeypatch, call):
    """Return the directories that ``call`` makes durable."""
    found = []
    real_fsync = os.fsync

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            found.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real_fsync(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        call()
    return found


def test_a_name_that_is_there_is_made_durable_too(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()  # by a process that died before it synced
    assert synced(monkeypatch, lambda: durable.make_dir(tmp_path / "a")) == [str(tmp_path)]
    (tmp_path / "a" / "manifest").write_bytes(b"x")
    assert synced(monkeypatch, lambda: durable.create(tmp_path / "a" / "manifest", b"y")) == [str(tmp_path / "a")]
    assert (tmp_path / "a" / "manifest").read_bytes() == b"x"


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False)])
def test_a_parent_that_cannot_be_synced_is_an_error_where_it_may_be_ours(tmp_path, monkeypatch, number, passes):
    (tmp_path / "mounted").mkdir()

    def refuse(_fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match="error"):
        durable.make_dir(tmp_path / "mounted")
    with pytest.raises(OSError, match=os.strerror(number)):
        durable.make_dir(tmp_path / "mounted" / "new")
