"""The ids of consistency groups."""

from __future__ import annotations

import itertools

from farshore.control.planning.apply import group_of
from farshore.model.plan import Plan
from farshore.platforms.directory import DirectoryManifests


def plan(name: str, consistency: str, *machines: str) -> Plan:
    return Plan.model_validate(
        {
            "name": name,
            "source_site": "alpha",
            "target_site": "beta",
            "consistency": consistency,
            "machines": [{"name": machine} for machine in machines],
        }
    )


def test_no_two_groups_have_one_id(tmp_path) -> None:
    names = ("shop", "shop-db", "shop-db-1", "shop.db", "db", "db-1", "1")
    found = [group_of(plan(name, "group", "db"), "db") for name in names]
    found += [group_of(plan(name, "machine", *names), machine) for name, machine in itertools.product(names, names)]
    assert len(set(found)) == len(found)
    store = DirectoryManifests(tmp_path)
    for group_id in found:
        assert store.list(f"groups/{group_id}/") == []
    longest = group_of(plan("p" * 63, "machine", "m" * 63), "m" * 63)
    assert len(longest) < 200
    assert store.put_if_absent(f"groups/{longest}/0000000001-cp-1.json", b"{}")
