import os
import stat
import threading

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
