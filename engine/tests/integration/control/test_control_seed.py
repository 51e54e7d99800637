"""Images that disks begin with: named in the plan, checked, handed to the node for the first copy only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.control_process import Control
from doubles.two_sites import TwoSites, two_sites

SEED = {"  - name: db\n": "  - name: db\n    seed: {vda: seeds/db.raw}\n"}


@pytest.fixture
def sites(control: Control, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(control, tmp_path) as both:
        yield both


def test_a_seed_is_named_to_the_node_until_there_is_a_base(sites: TwoSites) -> None:
    plan = sites.plan(**SEED)
    assert plan["definition"]["machines"][0]["seed"] == {"vda": "seeds/db.raw"}
    sites.protect()
    assert sites.replicate()["state"] == "succeeded"
    copied = [params["disks"][0] for params in sites.beta.of("replicate")]
    assert [disk["seed"] for disk in copied if disk["disk_key"] == "id-db/vda"] == ["seeds/db.raw", None]
    assert all(disk["seed"] is None for disk in copied if disk["disk_key"] != "id-db/vda")


def test_a_seed_of_an_unknown_disk_or_outside_of_the_pool_is_refused(sites: TwoSites) -> None:
    text = sites.plan()["source"]
    for seed, code, field in (
        ("{vdz: seeds/db.raw}", "disk-unknown", "machines[0].seed"),
        ("{vda: ../db.raw}", "plan-invalid", "machines[0].seed"),
    ):
        body = {"source": text.replace("  - name: db\n", f"  - name: db\n    seed: {seed}\n")}
        problem = sites.control.refused(422, code, "PUT", "/plans/shop", body)
        assert problem["field"].startswith(field)
