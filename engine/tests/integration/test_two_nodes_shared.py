"""The parts together: two nodes of one site under one limit, and worker processes beside a source that dials."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from doubles.control_process import until
from doubles.gate import Gate
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.transport.sockets import CONNECTIONS
from integration.test_two_nodes import PLAN, House, children, farshore, house  # noqa: F401 - house is a fixture

LINK = "/site-links/alpha/beta"
LIMIT = 8192


def roles(house: House, node: NodeProcess, *named: str) -> None:  # noqa: F811
    body = {"site": "beta", "roles": list(named), "data_address": f"127.0.0.1:{node.port}"}
    house.control.ok("PUT", f"/nodes/{node.name}", body)


def second_node(house: House, folder: Path) -> NodeProcess:  # noqa: F811
    """Add a node to the target site, which works on the same pool."""
    node = NodeProcess(folder, "beta-2", "beta", house.control.home.node_url, free_port())
    roles(house, node, "replication")
    ticket = house.control.ok("POST", "/nodes/beta-2:token")
    token = folder / "beta-2.token"
    token.write_text(ticket["token"])
    pin = ("--token-file", str(token), "--ca-sha256", ticket["ca_sha256"])
    assert farshore("node", "enrol", "--config", str(node.config_path), *pin)["changed"]
    return node.start()


def protect(house: House, *machines: str) -> None:  # noqa: F811
    house.control.ok("POST", "/plans/shop:protect", {"state": "protected", "machines": list(machines)})


def shares(house: House) -> dict[str, float]:  # noqa: F811
    """Return who may send how much now; it is never more than the link's limit together."""
    found = {share["node"]: share["bytes_per_s"] for share in house.control.ok("GET", LINK)["shares"]}
    assert sum(found.values()) <= LIMIT, found
    return found


def test_two_nodes_of_a_site_share_one_limit(house: House, tmp_path: Path):  # noqa: F811
    house.control.ok("PUT", LINK, {"bandwidth": "8 KiB/s"})
    house.write(1)
    until(lambda: len(house.control.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
    house.control.ok("PUT", "/plans/shop", {"definition": PLAN})
    protect(house, "db")
    house.beta.await_said("task begins", kind="replicate")
    until(lambda: shares(house) == {"beta-1": LIMIT}, "the first node has all of it")
    # So that the other copy is the second node's.
    roles(house, house.beta, "recovery")
    second = second_node(house, tmp_path)
    try:
        protect(house, "web")
        second.await_said("task begins", kind="replicate")
        until(lambda: shares(house) == {"beta-1": LIMIT / 2, "beta-2": LIMIT / 2}, "each node has half of it", 120)
        house.control.ok("PUT", LINK, {"bandwidth": "500 MiB/s"})
        house.seeded()
    finally:
        second.close()
    assert house.is_same()


def incoming(node: NodeProcess, pid: int) -> int:
    """Return how many connections to the node's port a process holds."""
    held = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a descriptor, or the process, has just gone
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            held.add(str(entry.readlink()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{node.port:04X}") and row[3] == "01" and f"socket:[{row[9]}]" in held for row in rows)


def test_copies_whose_source_dials_run_in_worker_processes(house: House):  # noqa: F811
    assert house.beta.stop() == 0
    house.beta.settings["workers"] = 2
    house.beta.write()
    house.beta.start()
    until(house.online, "both nodes are online")
    house.control.ok("PUT", LINK, {"data_listen": "target", "bandwidth": "8 KiB/s"})  # neither copy comes to its end
    gate = Gate(house.beta.port)
    body = {"site": "beta", "roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{gate.port}"}
    house.control.ok("PUT", "/nodes/beta-1", body)
    house.write(1)
    try:
        house.protect()
        workers = until(lambda: len(found := children(house.beta)) == 2 and found, "there are worker processes")
        until(lambda: all(incoming(house.beta, pid) == CONNECTIONS for pid in workers), "each has its connections")
        node = house.beta.process
        assert node is not None
        until(lambda: incoming(house.beta, node.pid) == 1, "one asks the node how many processes there are")
        until(lambda: len(house.beta.said("task begins", kind="replicate")) == 2, "both copies have begun")
        os.kill(workers[0], signal.SIGKILL)
        assert house.beta.await_said("task ended", kind="replicate", state="failed")["code"] == "worker-process"
        until(
            lambda: sorted(incoming(house.beta, pid) for pid in children(house.beta)) == [CONNECTIONS, CONNECTIONS],
            "a new process has the connections of the one that died",
        )
        house.control.ok("PUT", LINK, {"data_listen": "target"})
        house.seeded()
        assert house.is_same()
        gate.cut()
        house.write(2, mib=1)
        house.replicate()
        assert house.is_same()
        # Fewer processes, and then none.
        for count in (1, 0):
            assert house.beta.stop() == 0
            house.beta.settings["workers"] = count
            house.beta.write()
            house.beta.start()
            house.write(3 + count, mib=1)
            house.replicate()
            assert house.is_same()
            assert len(children(house.beta)) == count
    finally:
        gate.close()
