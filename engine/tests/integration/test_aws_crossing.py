"""A real guest goes from KVM to AWS and back: bit by bit what it was, and it answers at every stop."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import until
from doubles.crossing import Crossing, crossing
from farshore.units import MIB

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="private hypervisors need root"),
    pytest.mark.timeout(900),
]
CACHE = Path(os.environ.get("FARSHORE_LAB_CACHE", ".cache/lab"))


def same(one: Path, one_format: str, other: Path, other_format: str) -> bool:
    """Say whether two images hold the same; what one has beyond the other's end is zero."""
    words = ["qemu-img", "compare", "-U", "-f", one_format, "-F", other_format, str(one), str(other)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode == 0


def test_a_guest_goes_to_aws_and_comes_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    with crossing(tmp_path_factory.mktemp("f"), CACHE) as made:
        there_and_back(made)


def there_and_back(made: Crossing) -> dict[str, Any]:
    made.protect()
    row = until(lambda: made.ask_alpha("insert?value=over-there"), "a row is stored", 120)
    assert row["value"] == "over-there"
    over = made.run("failover", {"to_site": "cloud"})
    # The guest at home is off and fenced: its own disks are the image that nobody of us has written.
    away = made.machine("cloud")
    instance = str(away["machine_id"])
    assert made.guests.booted == [instance]
    home = made.lab.guests["db"].disks
    for disk, image in zip(home.values(), made.guests.launched[instance], strict=True):
        assert image.stat().st_size == 1024 * MIB
        assert same(disk, "qcow2", image, "raw")
    assert over["machines"][0]["state"] == "green"
    address = away["nics"][0]["addresses"][0]
    assert made.ask_cloud(address, "find?value=over-there")["rows"] == 1
    assert made.ask_cloud(address, "insert?value=and-back")["value"] == "and-back"

    back = made.run("reprotect", {})
    stats = back["cycles"][0]["stats"]
    assert stats["mode"] == "verify"
    assert stats["moved_bytes"] < 64 * MIB, "what the old disks hold does not cross again"
    made.run("failover", {"to_site": "alpha"})
    final = made.point(home_again := made.control.ok("GET", "/runs?limit=1")["items"][0])
    assert home_again["machines"][0]["state"] == "green"
    volumes = {disk["disk_id"]: made.aws.volume(disk["path"]) for disk in away["disks"]}
    pool = made.lab.alpha.storage / "pool"
    for disk in final["disks"]:
        disk_id = disk["disk_key"].partition("/")[2]
        assert same(pool / f"{disk['point']}.qcow2", "qcow2", volumes[disk_id], "raw")
    found = until(lambda: made.ask_alpha("find?value=and-back"), "it answers at home", 120)
    assert found["rows"] == 1
    return {"over": over, "back": back}
