"""The parts together: a change log that lies, bits that flip at the target, and what people are told of it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from doubles.control_process import until
from farshore.units import MIB
from integration.test_two_nodes import PLAN, House, house  # noqa: F401 - house is a fixture


def lie(house: House, offset: int) -> None:  # noqa: F811
    """Write to a disk so that its change log does not learn of it."""
    fd = os.open(house.machines["db"].image("vdb"), os.O_WRONLY)
    os.pwrite(fd, b"never told", offset)
    os.close(fd)


def of_db(house: House) -> list[dict[str, Any]]:  # noqa: F811
    found = [item for item in house.checkpoints() if item["machines"] == ["db"]]
    return sorted(found, key=lambda item: item["sequence"])


def test_a_lying_change_log_is_caught_and_told_also_after_the_records_were_lost(house: House):  # noqa: F811
    plan = {**PLAN, "transport": {"intermediate_checkpoint_window": "2MiB", "audit_fraction": 0.5}}
    house.write(1)
    until(lambda: len(house.control.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
    house.control.ok("PUT", "/plans/shop", {"definition": plan})
    house.control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    house.seeded()
    house.replicate()
    for unit in range(5):  # in a unit of each turn, so that one of them was not compared in the cycle before
        lie(house, unit * 4 * MIB + 5)
    house.replicate()
    assert house.is_same()
    first, second, third = of_db(house)
    assert third["stats"]["mode"] == "verify"
    assert "change tracking missed a change of disk db/vdb at offset" in third["stats"]["reason"]
    assert [item["integrity"] for item in (first, second, third)] == ["audited", "suspect", "audited"]
    assert second["addenda"][0]["damages"][0]["disk_key"] == "db/vdb"
    assert "suspect" in house.plan()["conditions"]
    # The records forget; a scan of the store brings it back.
    assert house.control.stop() == 0
    with sqlite3.connect(house.control.home.database) as records:
        records.execute("UPDATE checkpoint SET integrity = 'audited', addenda = '[]'")
        records.execute("DELETE FROM checkpoint WHERE checkpoint_id = ?", (first["checkpoint_id"],))
    records.close()
    house.control.start()
    until(house.online, "both nodes are online again")
    house.replicate()
    assert of_db(house)[0]["integrity"] == "suspect"


def test_a_scrub_finds_flipped_bits_and_the_next_cycle_repairs_the_copy(house: House, tmp_path: Path):  # noqa: F811
    house.write(1)
    house.protect()
    house.seeded()
    newest = of_db(house)[-1]
    name = newest["checkpoint_id"]
    run = house.control.ok("POST", f"/checkpoints/{name}:scrub")["run"]
    house.ended(run["run_id"])
    assert of_db(house)[-1]["integrity"] == "verified"
    image = tmp_path / "beta" / "pool" / "points" / newest["disks"][1]["point"] / "disk.img"
    image.chmod(0o600)
    with image.open("r+b") as opened:
        opened.seek(9 * MIB + 321)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 32]))
    run_id = house.control.ok("POST", f"/checkpoints/{name}:scrub")["run"]["run_id"]
    run = until(lambda: (it := house.control.ok("GET", f"/runs/{run_id}"))["ended_at"] and it, "the scrub ends")
    assert (run["state"], run["error"]["code"]) == ("failed", "checkpoint-suspect")
    damage = run["facts"]["damages"][0]
    assert (damage["disk_key"], damage["offset"]) == (newest["disks"][1]["disk_key"], 9 * MIB)
    # A plan without a sound copy is due at once. What grows on the damaged one is held against the source.
    until(lambda: len(of_db(house)) > 1, "the next checkpoint")
    assert house.is_same()
    after = of_db(house)[1]
    assert after["stats"]["mode"] == "verify"
    assert "scrub" in after["stats"]["reason"]
    assert after["integrity"] == "audited"


def test_a_disk_begins_with_a_copy_that_is_at_the_target_already(house: House, tmp_path: Path):  # noqa: F811
    house.write(1)
    seeds = tmp_path / "beta" / "pool" / "seeds"
    seeds.mkdir(parents=True)
    (seeds / "web.raw").write_bytes(house.machines["web"].image("vda").read_bytes())
    house.machines["web"].write("vda", 3 * MIB, b"since the copy")
    until(lambda: len(house.control.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
    machines = [{"name": "db"}, {"name": "web", "depends_on": ["db"], "seed": {"vda": "seeds/web.raw"}}]
    house.control.ok("PUT", "/plans/shop", {"definition": {**PLAN, "machines": machines}})
    house.control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    house.seeded()
    assert house.is_same()
    (web,) = (item for item in house.checkpoints() if item["machines"] == ["web"])
    assert web["stats"]["mode"] == "verify"
    assert web["stats"]["reason"] == "seeded from seeds/web.raw"
    assert 0 < web["stats"]["moved_bytes"] <= 64 * 1024
