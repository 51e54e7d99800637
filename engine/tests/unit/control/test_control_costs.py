"""Costs of a plan before and after a change, from what sites and cycles have told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doubles import shop_records
from farshore.control import costs
from farshore.control.api import schemas
from farshore.control.planning.apply import Outcome
from farshore.control.store import Store
from farshore.control.store.records import Cycle, Machine, Plan, PlanMachine, Site
from farshore.model.machine import DiskFacts, MachineFacts
from farshore.model.plan import Plan as Definition
from farshore.model.prices import Prices
from farshore.units import GIB

#: As the plan's machine has in its records.
GROUP = "grp-shop=db"


def store_with(folder: Path, site: str | None, changed: list[tuple[str, float, int]]) -> Store:
    """Return records of a plan of one machine of 100 GiB; ``changed``: mode, time and bytes of each of its cycles."""
    store = Store(folder / "records.db")
    store.migrate()
    with store.write() as tx:
        shop_records.plan(tx)
        if site is not None:
            prices = Prices(region="r", as_of="d", source="s", write_calls=0.006, stored_gib_month=0.05, sent_gib=0.09)
            tx.get_one(Site, site).inventory = {"platform": "aws", "prices": prices.model_dump()}
        facts = MachineFacts(
            machine_id="id-db",
            name="db",
            power="on",
            cpus=1,
            memory_bytes=GIB,
            firmware="bios",
            disks=(DiskFacts(disk_id="vda", size_bytes=100 * GIB),),
        )
        tx.add(Machine(site="alpha", machine_id="id-db", name="db", facts=facts.model_dump(mode="json"), seen_at=1.0))
        for number, (mode, at, size) in enumerate(changed):
            stats = {"mode": mode, "changed_bytes": size, "audited_bytes": 2 * GIB}
            shop_records.cycle(tx, cycle_id=f"cyc-{number}", group_id=GROUP, ordered_at=at, stats=stats)
    return store


def estimates(store: Store, **changes: Any) -> dict[str, Any]:
    """Return the estimates of a change of the plan, as they leave the API."""
    with store.read() as session:
        before = Definition.model_validate(session.get_one(Plan, "shop").definition).model_dump(mode="json")
        after = Definition.model_validate(before | changes).model_dump(mode="json")
        found = costs.of_change(session, "shop", Outcome(True, before, after, {"db": "id-db"}))
    assert schemas.PlanCosts.model_validate(found).model_dump() == found
    return found


def test_a_plan_between_sites_without_prices_has_no_costs(tmp_path: Path) -> None:
    assert estimates(store_with(tmp_path, None, [])) == {"before": None, "after": None}


def test_what_cycles_have_measured_is_what_a_month_is_made_of(tmp_path: Path) -> None:
    # 3 GiB in 5400 s. What the full copy wrote says nothing, and neither does a cycle that nothing came before.
    cycles = [("full", 0.0, 100 * GIB), ("incremental", 1800.0, GIB), ("incremental", 5400.0, 2 * GIB)]
    store = store_with(tmp_path, "beta", cycles)
    found = estimates(store, rpo=3600.0, retention={"count": 8})
    assert (found["after"]["basis"], found["after"]["changed_gib_per_day"]) == ("measured", 48.0)
    # A cycle each half hour of 2,048 blocks: 17.69472; 107 GiB that are kept: 5.35.
    assert found["after"]["per_month"] == {"calls": 17.69, "storage": 5.35, "transfer": 0.0, "total": 23.04}
    # The RPO of 15 minutes that it has: twice as often half as much twice over, 2 GiB in 7 cycles, 103.5 GiB kept.
    before = found["before"]["per_month"]
    assert (before["calls"], before["storage"]) == (17.69, round((100 + 7 * 0.25) * 0.05, 2))
    assert found["after"]["prices"] == [{"region": "r", "as_of": "d", "source": "s"}]


def test_what_no_cycle_has_told_is_assumed(tmp_path: Path) -> None:
    found = estimates(store_with(tmp_path, "beta", [("full", 0.0, 100 * GIB)]))["after"]
    assert (found["basis"], found["changed_gib_per_day"], found["unknown_machines"]) == ("assumed", 5.0, [])


def test_after_a_failover_the_other_site_is_the_source(tmp_path: Path) -> None:
    store = store_with(tmp_path, "beta", [])
    with store.write() as tx:
        tx.get_one(Plan, "shop").active_site = "beta"
        facts = tx.get_one(Machine, ("alpha", "id-db")).facts
        tx.add(
            Machine(site="beta", machine_id="id-new", name="db", facts=facts | {"machine_id": "id-new"}, seen_at=1.0)
        )
        member = tx.get_one(PlanMachine, ("shop", "db"))
        member.machine_id = "id-new"
    with store.read() as session:
        row = session.get_one(Plan, "shop")
        found = costs.of_change(session, "shop", Outcome(False, row.definition, row.definition, {}))["after"]
    # 100 GiB leave the provider; what it stores is the point that it tells changes by.
    assert (found["first_copy"]["transfer"], found["per_month"]["storage"]) == (9.0, 5.0)


def test_a_machine_that_is_not_known_is_named(tmp_path: Path) -> None:
    store = store_with(tmp_path, "beta", [])
    with store.write() as tx:
        tx.get_one(Machine, ("alpha", "id-db")).gone_at = 2.0
        assert tx.get(Cycle, "cyc-0") is None
    assert estimates(store)["after"]["unknown_machines"] == ["db"]
