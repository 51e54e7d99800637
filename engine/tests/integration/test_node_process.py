"""Starting and stopping a detached process that holds the node's lock."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from farshore.errors import Conflict, Permanent
from farshore.node import process

HOLDER = """
import signal, sys
from pathlib import Path
from farshore.node import process
end = process.Ending()
signal.signal(signal.SIGTERM, lambda *_: end.ask())
with process.only_one(Path(sys.argv[1]), Path(sys.argv[2])):
    print("holds", flush=True)
    end.wait()
"""


def paths(tmp_path: Path) -> tuple[Path, Path, Path]:
    return tmp_path / "state" / "node.lock", tmp_path / "state" / "node.pid", tmp_path / "log" / "node.log"


def command(lock: Path, pid: Path) -> list[str]:
    return [sys.executable, "-c", HOLDER, str(lock), str(pid)]


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            # A zombie is ended too; whoever adopted it reaps it in its own time.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


def test_a_node_starts_detached_and_stops(tmp_path: Path):
    lock, pid_path, log = paths(tmp_path)
    pid = process.start(command(lock, pid_path), lock, pid_path, log)
    try:
        assert process.running_pid(lock, pid_path) == pid
        assert os.getsid(pid) != os.getsid(0)
        assert os.getsid(pid) != pid
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
        assert process.stop(lock, pid_path)
    finally:
        if process.is_running(lock):
            os.kill(pid, signal.SIGKILL)
    assert process.running_pid(lock, pid_path) is None
    assert not pid_path.exists()
    assert log.read_text() == "holds\n"
    assert not process.stop(lock, pid_path)


def test_a_second_node_with_the_same_state_is_refused(tmp_path: Path):
    lock, pid_path, _ = paths(tmp_path)
    with process.only_one(lock, pid_path):
        assert process.running_pid(lock, pid_path) == os.getpid()
        with pytest.raises(Conflict) as caught, process.only_one(lock, pid_path):
            pass
        assert caught.value.code == "node-running"
        assert process.running_pid(lock, pid_path) == os.getpid()
    with process.only_one(lock, pid_path):
        pass


def test_a_process_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path):
    lock, pid_path, log = paths(tmp_path)
    log.parent.mkdir()
    log.write_text("of an earlier time\n")
    with pytest.raises(Permanent, match="no such platform") as caught:
        process.start([sys.executable, "-c", "import sys; sys.exit('no such platform')"], lock, pid_path, log)
    assert "earlier" not in str(caught.value)


def test_a_command_that_does_not_exist_is_told(tmp_path: Path):
    lock, pid_path, log = paths(tmp_path)
    with pytest.raises(Permanent):
        process.start([str(tmp_path / "none")], lock, pid_path, log)


def test_a_pid_file_of_a_killed_node_means_nothing(tmp_path: Path):
    lock, pid_path, log = paths(tmp_path)
    pid = process.start(command(lock, pid_path), lock, pid_path, log)
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    assert pid_path.exists()
    assert process.running_pid(lock, pid_path) is None
    assert not process.stop(lock, pid_path)
    again = process.start(command(lock, pid_path), lock, pid_path, log)
    assert again != pid
    assert process.stop(lock, pid_path)


def test_a_node_of_another_pid_namespace_is_not_mistaken_for_ours(tmp_path: Path):
    lock, pid_path, _ = paths(tmp_path)
    with process.only_one(lock, pid_path):
        pid_path.unlink()
        with pytest.raises(Permanent) as caught:
            process.stop(lock, pid_path)
    assert caught.value.code == "pid-unknown"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a pid namespace")
def test_a_node_starts_in_a_pid_namespace_and_ends_with_it(tmp_path: Path):
    lock, pid_path, log = paths(tmp_path)
    script = f"""
import sys
from pathlib import Path
from farshore.node import process
lock, pid, log = (Path(text) for text in sys.argv[1:])
first = process.start({command(lock, pid_path)!r}, lock, pid, log)
assert process.stop(lock, pid)
process.start({command(lock, pid_path)!r}, lock, pid, log)
print(first, flush=True)
"""
    done = subprocess.run(
        [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            sys.executable,
            "-c",
            script,
            lock,
            pid_path,
            log,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert int(done.stdout) < 20
    deadline = time.monotonic() + 60
    while process.is_running(lock) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_running(lock)
