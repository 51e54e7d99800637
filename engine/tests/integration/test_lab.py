"""The laboratory: two private sites, the application on the first, the relay; nothing is left in the end.

One laboratory for the module; its tests run in the order of the file, from a healthy one to one that is taken down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.ports import free_port
from farshore.errors import Conflict, Invalid, NotFound, Permanent, Unavailable
from farshore.testing.lab import Lab, app, command, process, site
from farshore.testing.lab.relay import HOST, Route

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and bridges need root"),
    # Six boots under emulation on a busy machine.
    pytest.mark.timeout(900),
]

REPOSITORY = Path(__file__).parents[3]
CACHE = Path(os.environ.get("FARSHORE_LAB_CACHE", REPOSITORY / ".cache" / "lab"))
FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=20).read().decode())"
# Answers each connection with its first line, in capitals, until its own end.
SHOUT = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    peer, _ = listener.accept()
    with peer, peer.makefile("rwb") as stream:
        while line := stream.readline():
            stream.write(line.upper())
            stream.flush()
"""
TALK = """
import socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
peer.sendall(b"hello\\n")
print(peer.recv(100))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    one = Lab(tmp_path_factory.mktemp("lab") / "l", CACHE)
    try:
        # Ports of their own: a control plane may be running on this machine.
        one.up(api_port=free_port(), node_port=free_port())
        yield one
    finally:
        one.down()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path leaves room for sockets below it, which that of ``tmp_path`` does not always."""
    return tmp_path_factory.mktemp("l")


@pytest.fixture
def bare(short: Path) -> Iterator[Lab]:
    one = Lab(short / "l", CACHE)
    yield one
    one.down()


def until(true: Callable[[], bool], what: str, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)


def fetch(where: site.Site, url: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(command.run([where.python, "-c", FETCH, url]))
    return answer


def page(lab: Lab, role: str, name: str) -> dict[str, Any]:
    address = app.NETWORKS["alpha"][0].address(app.tier(role).host)
    return fetch(lab.alpha, f"http://{address}:8080/cgi-bin/{name}")


def ask(port: int, *, timeout_s: float = 10) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as peer:
        peer.settimeout(timeout_s)
        peer.sendall(b"hello\n")
        return peer.recv(100)


@contextlib.contextmanager
def shouting(where: site.Site, port: int) -> Iterator[None]:
    server = subprocess.Popen(where.argv(sys.executable, "-c", SHOUT, str(port)), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.terminate()
        server.communicate()


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "farshore.testing.lab", *words]


def leftovers(root: Path) -> list[str]:
    """Return the command lines of all processes that name the root."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{root}/" in line or line.rstrip().endswith(str(root)):
                    found.append(line)
    return found


def test_status_names_sites_guests_and_routes(lab: Lab):
    facts = lab.status()
    assert {name: one["running"] for name, one in facts["sites"].items()} == {"alpha": True, "beta": True}
    assert {name: one["networks"][0]["subnet"] for name, one in facts["sites"].items()} == {
        "alpha": "10.77.1.0/24",
        "beta": "10.77.2.0/24",
    }
    assert {role: (one["state"], one["address"]) for role, one in facts["guests"].items()} == {
        "db": ("running", "10.77.1.11"),
        "web": ("running", "10.77.1.12"),
    }
    assert all(Path(path).is_file() for one in facts["guests"].values() for path in one["disks"].values())
    assert all(one["listening"] for one in facts["relay"]["routes"])


def test_the_web_guest_shows_what_the_database_holds(lab: Lab):
    inserted = page(lab, "db", "insert?value=seen-by-web")
    assert page(lab, "web", "find?value=seen-by-web") == {
        "value": "seen-by-web",
        "rows": 1,
        "sequence": inserted["sequence"],
    }
    status = page(lab, "web", "status")
    assert (status["role"], status["status"]) == ("web", "ok")
    database = status["database"]
    assert (database["journal"], database["across_disks"], database["table"]) == ("ok", "ok", "ok")
    assert database["rows"] == database["last_sequence"] >= inserted["sequence"]


def test_the_database_writes_by_itself(lab: Lab):
    before = page(lab, "db", "status")["rows"]
    until(lambda: page(lab, "db", "status")["rows"] > before, "another row")


def test_a_second_up_changes_nothing(lab: Lab):
    routes = {one["name"]: one["port"] for one in lab.status()["relay"]["routes"]}
    again = Lab(lab.root, lab.cache).up(api_port=routes["alpha-api"], node_port=routes["alpha-node"])
    assert again["changed"] is False


def test_a_site_has_its_own_network_and_the_interpreter_of_our_environment(lab: Lab):
    code = (
        "import json, os, socket, sys; "
        "print(json.dumps([sys.prefix, os.getcwd(), [name for _, name in socket.if_nameindex()]]))"
    )
    prefix, folder, interfaces = json.loads(command.run([lab.beta.python, "-c", code], cwd=lab.root))
    assert (prefix, folder) == (sys.prefix, str(lab.root))
    assert "fslab-recovery" in interfaces
    assert "fslab-recovery" not in [name for _index, name in socket.if_nameindex()]
    assert app.bridges(lab.alpha) == ["fslab-app"]


def test_what_runs_inside_ends_with_its_wrapper_and_a_daemon_does_not(lab: Lab):
    assert subprocess.run(lab.alpha.argv("sh", "-c", "exit 3"), check=False).returncode == 3
    wrapper = subprocess.Popen(lab.alpha.argv("sleep", "4711"))
    # The command itself, not one of the wrappers on the way to it: those do not yet end together.
    until(lambda: ("sleep", "4711") in [one.argv for one in process.find(["sleep", "4711"])], "the command runs")
    wrapper.terminate()
    wrapper.wait()
    until(lambda: not list(process.find(["sleep", "4711"])), "the command ended")

    lab.alpha.run("sh", "-c", "setsid sleep 4712 >/dev/null 2>&1 </dev/null &")
    [daemon] = list(process.find(["sleep", "4712"]))
    process.end([daemon])


def test_the_daemon_of_a_site_comes_back_and_the_guests_live_on(lab: Lab):
    [daemon] = [
        one for one in process.find(["libvirtd", "--config", f"{lab.alpha.folder}/etc/libvirtd.conf"]) if one.pid
    ]
    process.end([daemon])

    def back() -> bool:
        with contextlib.suppress(Unavailable):
            return lab.guests["db"].state() == "running"
        return False

    until(back, "libvirt answers again")
    assert page(lab, "db", "status")["boots"] == 1


def test_the_relay_carries_between_sites_and_can_be_cut_stalled_and_healed(lab: Lab):
    port = free_port()
    lab.relay.add(Route("try", HOST, port, "alpha", 9101))
    with shouting(lab.alpha, 9101):
        assert command.run([lab.beta.python, "-c", TALK, "9101"]) == "b'HELLO\\n'\n"
        assert ask(port) == b"HELLO\n"

        lab.relay.cut("try")
        with pytest.raises(ConnectionRefusedError):
            ask(port)
        lab.relay.heal("try")
        assert ask(port) == b"HELLO\n"

        lab.relay.set("try", "stalled")
        with pytest.raises(TimeoutError):
            ask(port, timeout_s=0.5)
        lab.relay.heal("try")
        assert ask(port) == b"HELLO\n"
    with contextlib.suppress(ConnectionResetError):
        assert ask(port) == b"", "nobody listens at the far end"
    assert lab.relay.remove("try") is True
    assert lab.relay.remove("try") is False
    with pytest.raises(NotFound, match="no route try"):
        lab.relay.cut("try")


def test_a_guest_is_published_on_the_machine(lab: Lab):
    port = free_port()
    assert lab.publish("web", port, "alpha", "10.77.1.12", 8080) is True
    assert lab.publish("web", port, "alpha", "10.77.1.12", 8080) is False
    answer = json.loads(command.run([sys.executable, "-c", FETCH, f"http://127.0.0.1:{port}/cgi-bin/status"]))
    assert answer["status"] == "ok"
    with pytest.raises(NotFound, match="no site gamma"):
        lab.publish("other", port, "gamma", "10.77.1.12", 8080)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Conflict, match="cannot be used"):
        lab.publish("other", taken.getsockname()[1], "alpha", "10.77.1.12", 8080)
    assert "other" not in [one["name"] for one in lab.relay.status()]


def test_after_a_power_cut_of_the_site_an_answered_row_is_there(lab: Lab):
    ports = {one["name"]: one["port"] for one in lab.relay.status()}
    row = page(lab, "db", "insert?value=before-the-cut")
    init = lab.alpha.init()
    assert init is not None
    process.end([init])
    assert lab.alpha.processes() == []
    until(lambda: not next(one for one in lab.relay.status() if one["name"] == "alpha-to-beta")["listening"], "closed")
    assert site.namespaces([lab.alpha.folder]) == []

    facts = lab.up(api_port=ports["alpha-api"], node_port=ports["alpha-node"])
    assert facts["changed"] is True
    assert {one["state"] for one in facts["guests"].values()} == {"off"}, "a guest that ran before starts by order only"
    until(lambda: all(one["listening"] for one in lab.relay.status()), "the relay listens in the new site")
    for one in lab.guests.values():
        one.start()
    for one in lab.guests.values():
        one.wait()

    status = page(lab, "db", "status")
    assert (status["status"], status["previous_stop"], status["boots"]) == ("ok", "unclean", 2)
    assert page(lab, "db", "find?value=before-the-cut")["sequence"] == row["sequence"]
    web = json.loads(command.run([sys.executable, "-c", FETCH, f"http://127.0.0.1:{ports['web']}/cgi-bin/status"]))
    assert web["status"] == "ok", "the published port leads into the new site"


def test_the_power_button_stops_a_guest_in_order_and_up_leaves_it_off(lab: Lab):
    database = lab.guests["db"]
    row = page(lab, "db", "insert?value=last-second")
    connection = lab.alpha.connect()
    try:
        domain = database.domain(connection)
        assert domain is not None
        domain.shutdown()
        until(lambda: database.state() == "off", "switched off")
    finally:
        connection.close()
    [stopped] = [line for line in database.console.read_text(errors="replace").splitlines() if "STOPPED" in line]
    assert int(stopped.strip().rpartition("=")[2]) >= row["sequence"]
    routes = {one["name"]: one["port"] for one in lab.relay.status()}
    facts = lab.up(api_port=routes["alpha-api"], node_port=routes["alpha-node"])
    assert (facts["changed"], facts["guests"]["db"]["state"]) == (False, "off")

    database.start()
    database.wait()
    status = page(lab, "db", "status")
    assert (status["status"], status["previous_stop"]) == ("ok", "clean")
    assert page(lab, "db", "find?value=last-second")["sequence"] == row["sequence"]


def test_down_leaves_nothing(lab: Lab):
    folders = [one.folder for one in lab.sites.values()]
    held = site.namespaces(folders)
    assert len(held) == 2
    assert lab.down() is True
    assert not lab.root.exists()
    assert list(lab.root.parent.iterdir()) == []
    assert leftovers(lab.root) == []
    links = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            links.add(str(link.readlink()))
    assert not links & set(held)
    assert lab.down() is False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_up_is_finished_by_up_and_removed_by_down(bare: Lab, number: signal.Signals):
    words = ["--root", str(bare.root), "--cache", str(bare.cache)]
    started = subprocess.Popen(cli("up", "--sites-only", *words), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert started.stderr is not None
    assert b"starting the private site alpha" in started.stderr.readline()
    started.send_signal(number)
    started.communicate()
    assert started.returncode == (130 if number == signal.SIGINT else -number)

    assert bare.up(sites_only=True)["changed"] is True
    again = Lab(bare.root, bare.cache)
    [relay] = again.relay.processes()
    process.end([relay])
    assert again.up(sites_only=True)["changed"] is True, "a relay that died is started again"
    for one in again.sites.values():  # down must cope with a relay whose sites are gone
        process.end(one.processes())
    done = subprocess.run(cli("down", *words), capture_output=True, check=True)
    assert json.loads(done.stdout)["changed"] is True
    assert not bare.root.exists()
    assert leftovers(bare.root) == []


def test_a_folder_of_somebody_else_is_neither_used_nor_removed(short: Path):
    (short / "mine").write_text("precious")
    foreign = Lab(short, CACHE)
    for act in (foreign.up, foreign.down):
        with pytest.raises(Conflict, match="not a laboratory's"):
            act()
    assert (short / "mine").read_text() == "precious"
    assert foreign.relay.processes() == []


def test_wrong_surroundings_are_told_with_the_next_step(short: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Invalid) as long:
        Lab(short / ("x" * 80), CACHE)
    assert long.value.field == "root"

    monkeypatch.setitem(command.PACKAGES, "no-such-tool", "no-such-package")
    with pytest.raises(Permanent) as missing:
        command.require(["no-such-tool"])
    assert missing.value.code == "missing-tool"
    assert "apt-get install --no-install-recommends no-such-package" in missing.value.hint

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Permanent) as rights:
        Lab(short / "l", CACHE).up()
    assert rights.value.code == "not-root"
    assert not (short / "l").exists()
