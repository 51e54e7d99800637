"""``farshore linktest`` as its users run it: two processes of the command line."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.ports import free_port

MIB = 1 << 20
FARSHORE = [sys.executable, "-m", "farshore.cli.main"]


def run(*words: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FARSHORE, "linktest", *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@contextlib.contextmanager
def serving(*words: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*FARSHORE, "linktest", "serve", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def image(path: Path, size_bytes: int, seed: int, *, pieces: int = 24) -> Path:
    """Make a sparse image: data that can be compressed, data that cannot, zeros that are written, holes."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for _ in range(pieces):
            length = rng.randrange(1, 600_000)
            file.seek(rng.randrange(0, size_bytes - length))
            kind = rng.randrange(3)
            file.write(
                rng.randbytes(length) if kind == 0 else (b"farshore" if kind == 1 else b"\0" * 8) * (length // 8)
            )
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linktest") / "keys"
    assert run("keys", folder).returncode == 0
    return folder


def pulled(keys: Path, target: Path, *words: object) -> dict[str, Any]:
    result = run("pull", "--keys", keys, "--disk", target, *words, "--json")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_full_copy_is_identical_and_measured(keys: Path, tmp_path: Path) -> None:
    source, target, port = image(tmp_path / "a.img", 24 * MIB + 512, 1), tmp_path / "b.img", free_port()
    target.write_bytes(b"what was there before" * 100_000)
    with serving("--keys", keys, "--disk", source, "--listen", f"127.0.0.1:{port}"):
        wait_for(port)
        report = pulled(keys, target, "--connect", f"127.0.0.1:{port}", "--compress", "off")
    assert target.read_bytes() == source.read_bytes()
    assert report["mode"] == "full"
    assert report["verified"] is True
    assert report["bytes"] < report["wire_bytes"] < 1.2 * report["bytes"] + 200_000
    assert report["source_read_bytes"] >= report["bytes"]
    assert report["cpu_s"]["source"] > 0 < report["cpu_s"]["target"]
    assert report["peak_rss_mib"]["source"] > 10 < report["peak_rss_mib"]["target"]
    assert 0 < report["peak_in_flight_bytes"] <= 64 * MIB
    assert report["connections"] >= 1
    assert (report["retries"], report["reconnects"], report["resent_bytes"]) == (0, 0, 0)
    assert not list(tmp_path.glob("*.linktest"))


def test_the_end_that_listens_may_be_the_target(keys: Path, tmp_path: Path) -> None:
    source, target, port = image(tmp_path / "a.img", 8 * MIB, 2), tmp_path / "b.img", free_port()
    with serving("--keys", keys, "--disk", source, "--connect", f"127.0.0.1:{port}"):
        for _ in range(2):  # the source comes back to the next one
            pulled(keys, target, "--listen", f"127.0.0.1:{port}")
            assert target.read_bytes() == source.read_bytes()


def test_only_what_changed_crosses(keys: Path, tmp_path: Path) -> None:
    source, port = image(tmp_path / "a.img", 16 * MIB, 3), free_port()
    target = tmp_path / "b.img"
    target.write_bytes(source.read_bytes())
    changes = [[4096 * 7, 4096], [1 * MIB + 1024, 512], [9 * MIB, 3 * 65536], [16 * MIB - 4096, 4096]]
    with source.open("r+b") as file:
        for offset, length in changes:
            file.seek(offset)
            file.write(random.Random(offset).randbytes(length))
    (tmp_path / "map.json").write_text(json.dumps(changes), encoding="ascii")
    words = ("--keys", keys, "--disk", source, "--changed", tmp_path / "map.json", "--listen", f"127.0.0.1:{port}")
    with serving(*words):
        wait_for(port)
        report = pulled(keys, target, "--connect", f"127.0.0.1:{port}", "--connections", "2", "--window", "16MiB")
    assert target.read_bytes() == source.read_bytes()
    assert report["mode"] == "incremental"
    assert report["changed_bytes"] == sum(length for _, length in changes)
    assert report["bytes"] <= report["changed_bytes"]
    assert 1 <= report["connections"] <= 2  # half as many as processors where both ends are on one machine


def test_several_disks_go_side_by_side(keys: Path, tmp_path: Path) -> None:
    port = free_port()
    sources = [image(tmp_path / f"a{number}.img", 6 * MIB + number * 4096, number) for number in range(5)]
    targets = [tmp_path / f"b{number}.img" for number in range(5)]
    there = [word for path in sources for word in ("--disk", path)]
    here = [word for path in targets[1:] for word in ("--disk", path)]
    with serving("--keys", keys, *there, "--listen", f"127.0.0.1:{port}"):
        wait_for(port)
        report = pulled(keys, targets[0], *here, "--connect", f"127.0.0.1:{port}", "--node-window", "16MiB")
    assert [path.read_bytes() for path in targets] == [path.read_bytes() for path in sources]
    assert [one["disk"] for one in report["disks"]] == [str(path) for path in targets]
    assert all(one["seconds"] >= 0 for one in report["disks"])
    assert report["peak_in_flight_bytes"] <= 16 * MIB


def test_a_killed_pull_goes_on_where_it_was(keys: Path, tmp_path: Path) -> None:
    source, target, port = tmp_path / "a.img", tmp_path / "b.img", free_port()
    source.write_bytes(random.Random(5).randbytes(160 * MIB))
    words = ("--keys", keys, "--disk", target, "--connect", f"127.0.0.1:{port}", "--bandwidth", "80MiB")
    with serving("--keys", keys, "--disk", source, "--listen", f"127.0.0.1:{port}"):
        wait_for(port)
        first = subprocess.Popen([*FARSHORE, "linktest", "pull", *map(str, words)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not target.exists() or target.stat().st_blocks * 512 < 144 * MIB:  # a mark is made at 125
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
        first.wait()
        assert (tmp_path / "b.img.linktest").is_dir()
        report = pulled(keys, target, "--connect", f"127.0.0.1:{port}")
    assert target.read_bytes() == source.read_bytes()
    assert report["verified"] is True
    assert report["earlier_bytes"] >= 120 * MIB
    assert report["bytes"] + report["earlier_bytes"] == 160 * MIB
    assert not (tmp_path / "b.img.linktest").exists()


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_pull_that_had_published_proves_the_disk_once_more(keys: Path, tmp_path: Path, damaged: bool) -> None:
    source, target, port = image(tmp_path / "a.img", 4 * MIB, 9), tmp_path / "b.img", free_port()
    with serving("--keys", keys, "--disk", source, "--listen", f"127.0.0.1:{port}"):
        wait_for(port)
        # It ends just behind the manifest, as if it had been killed there.
        words = ("pull", "--keys", keys, "--disk", target, "--connect", f"127.0.0.1:{port}")
        code = (
            "import sys; from farshore.cli.main import main\n"
            "from farshore.cli.local.linktest import pulling; pulling._is_proven = lambda _: sys.exit(9)\n"
            "main(['linktest', *sys.argv[1:]])"
        )
        cut = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, check=False)
        assert cut.returncode == 9, cut.stderr
        if damaged:
            with target.open("r+b") as file:
                file.seek(3 * MIB)
                file.write(b"rot")
            result = run(*words)
            assert result.returncode not in {0, 1}
            assert "read-back" in result.stderr
        else:
            report = pulled(keys, target, "--connect", f"127.0.0.1:{port}")
            assert (report["bytes"], report["verified"]) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--disk", "missing.img", "--listen", "127.0.0.1:0"], "missing.img"),
        (["serve", "--disk", "a.img"], "either --listen or --connect"),
        (["serve", "--disk", "a.img", "--changed", "a.img", "--listen", "127.0.0.1:0"], "no change map"),
        (["pull", "--disk", "b.img", "--connect", "nonsense"], "host:port"),
        (["pull", "--disk", "b.img", "--connect", "h:1", "--connections", "99"], "1 to 32"),
        (["pull", "--disk", "b.img", "--connect", "h:1", "--window", "1TiB"], "window"),
        (["pull", "--disk", "b.img", "--disk", "b.img", "--connect", "h:1"], "twice"),
    ],
)
def test_wrong_input_is_named(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "a.img", 1 * MIB, 7, pieces=2)
    result = run(words[0], "--keys", keys, *words[1:])
    assert result.returncode == 65, result.stderr
    assert said in result.stderr
    assert not (tmp_path / "b.img").exists()


def test_keys_of_another_authority_are_refused(keys: Path, tmp_path: Path) -> None:
    source, port = image(tmp_path / "a.img", 2 * MIB, 8, pieces=3), free_port()
    assert run("keys", tmp_path / "others").returncode == 0
    with serving("--keys", keys, "--disk", source, "--listen", f"127.0.0.1:{port}"):
        wait_for(port)
        result = run(
            "pull", "--keys", tmp_path / "others", "--disk", tmp_path / "b.img", "--connect", f"127.0.0.1:{port}"
        )
    assert result.returncode not in {0, 1}
    assert "certificate" in result.stderr
