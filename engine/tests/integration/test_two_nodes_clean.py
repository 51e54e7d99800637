"""The parts together: a machine whose disks get encrypted, and the checkpoint before that."""

from __future__ import annotations

import os
import random
import zlib
from typing import Any

from doubles.control_process import until
from farshore.units import MIB
from integration.test_two_nodes import PLAN, SIZES, House, house  # noqa: F401 - house is a fixture

WORDS = b"checkout order invoice customer basket payment shipped returned pending total price amount".split()


def prose(seed: int, size: int) -> bytes:
    """Return text as a database or a log holds it."""
    chance = random.Random(seed)
    lines = (
        b"%010d " % number + b" ".join(chance.choices(WORDS, k=12)) + b"\n"
        for number in range(seed * 10**6, seed * 10**6 + size // 80)
    )
    return b"".join(lines).ljust(size, b".")[:size]


def of_db(house: House, *, clean: bool = False) -> list[dict[str, Any]]:  # noqa: F811
    items = house.control.ok("GET", f"/checkpoints?plan=shop&machine=db&clean={str(clean).lower()}")["items"]
    return sorted(items, key=lambda item: item["sequence"])


def verdicts(house: House) -> list[str]:  # noqa: F811
    return [item["suspicion"]["verdict"] for item in of_db(house)]


def test_the_checkpoint_before_an_encryption_is_found_kept_and_chosen(house: House):  # noqa: F811
    db, control = house.machines["db"], house.control
    for name, disks in SIZES.items():
        for number, (disk_id, size) in enumerate(disks.items()):
            house.machines[name].write(disk_id, 0, prose(number, size))
    until(lambda: len(control.ok("GET", "/machines?site=alpha")["items"]) == 2, "the inventory comes")
    control.ok("PUT", "/plans/shop", {"definition": {**PLAN, "retention": {"count": 2}}})
    control.ok("POST", "/plans/shop:protect", {"state": "protected"})
    house.seeded()
    db.write("vda", 2 * MIB, prose(7, MIB))
    house.replicate()
    # An archive is noise too, but little of the disk and not as even as what a cipher makes.
    archive = zlib.compress(prose(8, 24 * MIB), 9)
    db.write("vdb", MIB, archive[: 3 * MIB])
    house.replicate()
    assert verdicts(house)[-2:] == ["clean", "clean"]
    assert "encryption-suspected" not in house.plan()["conditions"]
    before = of_db(house)[-1]["checkpoint_id"]

    for disk_id, size in SIZES["db"].items():
        db.write(disk_id, 0, os.urandom(size * 9 // 10 // MIB * MIB))
    house.replicate()
    db.write("vda", 11 * MIB, prose(9, 64 * 1024))
    house.replicate()
    flagged, tainted = of_db(house)[-2:]
    assert flagged["suspicion"]["verdict"] == "flagged"
    assert flagged["suspicion"]["score"] >= 80
    assert "db/vda" in flagged["suspicion"]["reasons"][0] + flagged["suspicion"]["reasons"][1]
    assert tainted["suspicion"]["verdict"] == "tainted"
    assert tainted["suspicion"]["tainted_by"] == flagged["checkpoint_id"]
    assert "encryption-suspected" in house.plan()["conditions"]
    assert of_db(house, clean=True)[-1]["checkpoint_id"] == before

    # With a count of 2 it would have gone by now; so would the one that shows where it began.
    for seed in (10, 11):
        db.write("vda", 11 * MIB, prose(seed, 64 * 1024))
        house.replicate()
    until(lambda: len(of_db(house)) == 4, "retention has thinned the chain")
    kept = {item["checkpoint_id"]: item["retention"] for item in of_db(house)}
    assert kept[before] == {"stays": True, "reasons": ["the newest clean one"]}
    assert kept[flagged["checkpoint_id"]]["reasons"] == ["the first with a sign of encryption"]

    def chosen(selector: str) -> str:
        wish = {"mode": "unplanned", "to_site": "beta", "checkpoint": selector}
        preview = control.ok("POST", "/plans/shop:failover-preview", wish)
        assert any("signs of encryption" in text for text in preview["warnings"]) is (selector == "latest")
        return str(preview["after"]["checkpoints"]["db"])

    assert chosen("latest_clean") == before
    assert chosen("latest") == of_db(house)[-1]["checkpoint_id"]

    # Somebody says that the machine is well again: what follows is clean, and latest_clean moves on.
    last = of_db(house)[-1]["checkpoint_id"]
    operator = control.role("operator")
    control.refused(403, "role-too-small", "POST", f"/checkpoints/{last}:clear", {"note": "restored"}, token=operator)
    control.ok("POST", f"/checkpoints/{last}:clear", {"note": "restored from backup"})
    assert chosen("latest_clean") == last
    assert "encryption-suspected" not in house.plan()["conditions"]
