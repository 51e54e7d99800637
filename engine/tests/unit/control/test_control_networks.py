"""What a plan's networks are held against when it is applied."""

from __future__ import annotations

import pytest
from farshore.control.planning.apply import drills_beside
from farshore.model.machine import Inventory, NetworkFacts
from farshore.model.plan import Plan


@pytest.mark.parametrize(
    ("one_space", "drill", "warned"),
    [(True, "10.8.0.0/16", True), (True, "10.9.0.0/24", False), (False, "10.8.0.0/16", False)],
)
def test_a_drill_subnet_that_the_site_has_already_is_warned_of(one_space: bool, drill: str, warned: bool) -> None:
    plan = Plan.model_validate(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "machines": [{"name": "db"}],
            "networks": [{"source": "lan", "drill": {"subnet": drill}, "failover": "dmz"}],
        }
    )
    networks = (NetworkFacts(name="v6", subnet="fd00::/64"), NetworkFacts(name="dmz", subnet="10.8.0.0/24"))
    found = drills_beside(plan, Inventory(platform="any", networks=networks, one_address_space=one_space))
    assert len(found) == warned
    assert all("'dmz'" in one and "'lan'" in one for one in found)
