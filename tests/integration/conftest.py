"""A real control plane with two nodes of platform `file`, set up by the collection's own roles; one for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from doubles.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))
from stand import COLLECTIONS, FARSHORE, MIB, ROOT, SERVICES, Services


@pytest.fixture(scope="session")
def services(tmp_path_factory):
    COLLECTIONS.joinpath("ansible_collections", "farshore").mkdir(parents=True, exist_ok=True)
    link = COLLECTIONS / "ansible_collections" / "farshore" / "dr"
    if not link.exists():
        link.symlink_to(ROOT)
    folder = tmp_path_factory.mktemp("services")
    hosts = {
        "localhost": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        "north": {"data_port": free_port()},
        "south": {"data_port": free_port()},
    }
    inventory = {
        "all": {
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "hosts": hosts,
            "children": {"nodes": {"hosts": {"north": {}, "south": {}}}},
        }
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    variables = {
        "folder": str(folder),
        "home": str(folder / "control"),
        "api_port": free_port(),
        "node_port": free_port(),
        "executable": str(FARSHORE),
    }
    running = Services(folder, variables=variables)
    for name in ("db", "web", "idle"):
        disks = {"vda": 8 * MIB, "vdb": 4 * MIB} if name == "db" else {"vda": 8 * MIB}
        running.machine("north", name, **disks).write("vda", MIB, os.urandom(3 * MIB))
    try:
        running.first = running.play_text(SERVICES)
        env = (folder / "control" / "farshore.env").read_text(encoding="utf-8")
        token = env.partition("FARSHORE_TOKEN=")[2].splitlines()[0]
        running.variables.update(
            farshore_url=f"https://127.0.0.1:{variables['api_port']}",
            farshore_ca_path=str(folder / "control" / "ca.pem"),
            farshore_token=token,
        )
        yield running
    finally:
        running.play_text(SERVICES, check=False, node_state="absent")
