"""Who may send how much: shares in the records, and what nodes are told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from doubles import shop_records
from farshore.control.scheduling import dials, quotas, rates
from farshore.control.scheduling.shares import LEASE_S
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import Node, Plan, Share, Site, SiteLink, Task
from farshore.model.task import DialOrder, PollRequest, RateShare
from sqlalchemy import select

LINK, PLAN = "link:alpha/beta", "plan:shop"
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    with opened.write() as tx:
        shop_records.plan(tx)
        for name, site in (("alpha-1", "alpha"), ("beta-1", "beta"), ("beta-2", "beta")):
            tx.add(
                Node(
                    name=name,
                    site=site,
                    roles=["replication"],
                    data_address=f"{name}:9101",
                    created_at=1.0,
                    generation=1,
                    thumbprint=f"thumb-{name}",
                    last_seen=time.time(),
                )
            )
        tx.flush()
        tx.add(link(limit=90 * MIB))
    return opened


def link(limit: Any, listens: str = "source") -> SiteLink:
    bandwidth = {"limit": limit, "calendar": [], "timezone": "UTC"}
    return SiteLink(source_site="alpha", target_site="beta", data_listen=listens, bandwidth=bandwidth, created_at=1.0)


def copy(tx: Transaction, name: str, node: str, listens: str = "source", state: str = "assigned") -> Task:
    """Insert a replication that ``node`` works on."""
    session = {
        "listens": listens,
        "limits": [LINK, PLAN],
        "source_node": "alpha-1",
        "target_site": "beta",
        "target_thumbprint": f"thumb-{node}",
        "target_address": f"{node}:9101",
        "connections": 4,
    }
    task = Task(
        task_id=name, key=name, kind="replicate", site="beta", state=state, node=node, params={}, created_at=1.0
    )
    task.session = session
    tx.add(task)
    tx.flush()
    return task


def ask(store: Store, name: str, *, obeyed: bool = True, **changes: Any) -> dict[str, RateShare]:
    """Let a node poll; ``obeyed``: the last answer reached it."""
    restarted = changes.pop("restarted", False)
    with store.write() as tx:
        node = tx.get_one(Node, name)
        request = PollRequest(
            node=name,
            incarnation="1",
            version="",
            platform="file",
            data_port=1,
            standing=node.standing if obeyed else "another",
            **changes,
        )
        told = rates.renew(tx, node, request, restarted=restarted, since=0.0)
        node.standing = rates.standing(told, ())
        return {share.resource: share for share in told}


def test_a_limit_is_shared_by_the_nodes_that_copy(store: Store) -> None:
    with store.write() as tx:
        copy(tx, "t-1", "beta-1")
    assert ask(store, "beta-2") == {}
    assert ask(store, "beta-1")[LINK].bytes_per_s == 90 * MIB
    with store.write() as tx:
        copy(tx, "t-2", "beta-2")
    assert ask(store, "beta-2")[LINK].bytes_per_s == 0.0
    assert ask(store, "beta-1")[LINK].bytes_per_s == 45 * MIB
    assert ask(store, "beta-2")[LINK].bytes_per_s == 0.0  # what beta-1 was told may not have arrived
    ask(store, "beta-1", obeyed=False)
    assert ask(store, "beta-2")[LINK].bytes_per_s == 0.0
    told = ask(store, "beta-1")
    assert told[LINK] == RateShare(resource=LINK, bytes_per_s=45.0 * MIB, later_bytes_per_s=22.5 * MIB, valid_s=LEASE_S)
    assert PLAN not in told  # the plan has no limit
    assert ask(store, "beta-2")[LINK].bytes_per_s == 45 * MIB


def test_a_lease_that_has_just_been_written_holds_for_what_is_left_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.write() as tx:
        copy(tx, "t-1", "beta-1")

    def at(now: float) -> tuple[float, float]:
        """Return what a poll then is told, and when the record of it ends."""
        monkeypatch.setattr(rates.time, "time", lambda: now)
        told = ask(store, "beta-1")[LINK].valid_s
        with store.read() as session:
            return told, session.get_one(Share, (LINK, "beta-1")).until

    began = 1_700_000_000.0
    assert at(began) == (LEASE_S, began + LEASE_S)
    at(began + 1.0)  # says that it has obeyed: that is written
    valid_s, until = at(began + 3.0)
    assert began + 3.0 + valid_s == until < began + 3.0 + LEASE_S
    assert at(began + 20.0) == (LEASE_S, began + 20.0 + LEASE_S)
    assert at(began - 3600.0) == (LEASE_S, began - 3600.0 + LEASE_S)  # the clock was set back


def test_who_has_ended_leaves_its_share_at_once_it_says_so(store: Store) -> None:
    with store.write() as tx:
        for number in (1, 2):
            copy(tx, f"t-{number}", f"beta-{number}")
    for _ in range(3):
        for name in ("beta-1", "beta-2"):
            ask(store, name)
    with store.write() as tx:
        tx.get_one(Task, "t-1").state = "cancelled"
    assert ask(store, "beta-1", running=("t-1",))[LINK].bytes_per_s == 45 * MIB  # it still copies
    assert ask(store, "beta-1") == {}
    assert ask(store, "beta-2")[LINK].bytes_per_s == 90 * MIB


def test_a_process_that_is_gone_uses_nothing(store: Store) -> None:
    with store.write() as tx:
        copy(tx, "t-1", "beta-1")
    ask(store, "beta-1")
    with store.write() as tx:
        tx.get_one(Task, "t-1").state = "queued"
        copy(tx, "t-2", "beta-2")
    assert ask(store, "beta-2")[LINK].bytes_per_s == 0.0
    ask(store, "beta-1", restarted=True)
    assert ask(store, "beta-2")[LINK].bytes_per_s == 90 * MIB


def test_an_edit_and_the_end_of_a_limit_reach_who_copies(store: Store) -> None:
    with store.write() as tx:
        copy(tx, "t-1", "beta-1")
        known = rates.watch(tx, {})
    assert known == {LINK: 90 * MIB, PLAN: None}
    ask(store, "beta-1")
    with store.write() as tx:
        tx.get_one(SiteLink, ("alpha", "beta")).bandwidth = {"limit": 10 * MIB}
        plan = tx.get_one(Plan, "shop")
        plan.definition = plan.definition | {"transport": {"bandwidth": {"limit": 3 * MIB}}}
    with store.write() as tx:
        rates.watch(tx, known)
        assert tx.effects.sites == {"beta"}
    told = ask(store, "beta-1")
    assert (told[LINK].bytes_per_s, told[PLAN].bytes_per_s) == (10 * MIB, 3 * MIB)
    with store.write() as tx:
        tx.delete(tx.get_one(SiteLink, ("alpha", "beta")))
    assert set(ask(store, "beta-1")) == {PLAN}
    with store.read() as session:
        assert [row.resource for row in session.scalars(select(Share))] == [PLAN]


def test_what_a_node_is_told_has_a_name() -> None:
    share = RateShare(resource=LINK, bytes_per_s=1.0, later_bytes_per_s=1.0, valid_s=1.0)
    order = DialOrder(site="beta", node="beta-1", thumbprint="t", address="b:1")
    names = {rates.standing(limits, links) for limits in ((), (share,)) for links in ((), (order,))}
    assert len(names) == 4
    assert rates.standing((), ()) == ""
    assert rates.standing((share,), ()) == rates.standing((share.model_copy(update={"valid_s": 2.0}),), ())


def test_a_source_dials_the_targets_that_listen(store: Store) -> None:
    with store.write() as tx:
        node = tx.get_one(Node, "alpha-1")
        assert dials.orders(tx, node) == ()
        tx.delete(tx.get_one(SiteLink, ("alpha", "beta")))
        tx.flush()
        tx.add(link(None, "target"))
        tx.flush()
        # For cycles to come: every node of the target that answers.
        found = [(order.node, order.address, order.connections) for order in dials.orders(tx, node)]
        assert found == [("beta-1", "beta-1:9101", "auto"), ("beta-2", "beta-2:9101", "auto")]
        tx.get_one(Node, "beta-2").last_seen = 1.0
        tx.flush()
        assert [order.node for order in dials.orders(tx, node)] == ["beta-1"]
        # For a cycle that runs: the one that has it, whatever the link says by now.
        tx.get_one(SiteLink, ("alpha", "beta")).data_listen = "source"
        copy(tx, "t-2", "beta-2", "target")
        assert [(order.node, order.connections) for order in dials.orders(tx, node)] == [("beta-2", 4)]
        assert dials.orders(tx, tx.get_one(Node, "beta-1")) == ()


def in_cloud(store: Store, **limits: Any) -> None:
    """Let the target's site, and another one, belong to one account of a provider that counts."""
    told = {"account": "1.eu", "writes": {"PutBlock": 100.0}, "reads": {"GetBlock": 50.0}, **limits}
    with store.write() as tx:
        tx.add(Site(name="gamma", platform="file", data_listen="source", description="", created_at=1.0))
        tx.flush()
        for name in ("beta", "gamma"):
            tx.get_one(Site, name).inventory = {"platform": "file", "limits": told}
        first = tx.get_one(Node, "beta-1")
        tx.add(
            Node(
                name="gamma-1",
                site="gamma",
                roles=["replication"],
                data_address="gamma-1:9101",
                created_at=1.0,
                generation=1,
                thumbprint="thumb-gamma-1",
                last_seen=first.last_seen,
            )
        )


def test_calls_belong_to_an_account_whichever_of_its_sites_makes_them(store: Store) -> None:
    in_cloud(store)
    with store.write() as tx:
        for name, node, site in (("t-1", "beta-1", "beta"), ("t-2", "gamma-1", "gamma")):
            task = copy(tx, name, node)
            task.site = site
            task.session = {
                **task.session,
                "limits": list(quotas.rates_of(tx, site, "writes")),
                "reads": list(quotas.rates_of(tx, "beta", "reads")),
                "source_node": "beta-2",
            }
    put, get = "writes:1.eu:PutBlock", "reads:1.eu:GetBlock"
    for _ in range(3):
        told = {name: ask(store, name) for name in ("beta-1", "gamma-1", "beta-2")}
    assert {name: sorted(shares) for name, shares in told.items()} == {
        "beta-1": [put],
        "gamma-1": [put],
        "beta-2": [get],
    }
    assert [told[name][put].bytes_per_s for name in ("beta-1", "gamma-1")] == [48.5, 48.5]
    assert told["beta-2"][get].bytes_per_s == 48.5
    with store.write() as tx:
        tx.get_one(Task, "t-2").state = "cancelled"
        scrub = Task(
            task_id="s-1",
            key="s-1",
            kind="scrub",
            site="gamma",
            state="assigned",
            node="gamma-1",
            params={},
            created_at=1.0,
        )
        tx.add(scrub)
    for _ in range(3):
        told = {name: ask(store, name) for name in ("gamma-1", "beta-1", "beta-2")}
    assert told["gamma-1"][get].bytes_per_s == 24.25  # a scrub reads the points of its own site
    with store.write() as tx:
        tx.get_one(Task, "s-1").state = "succeeded"
    assert ask(store, "gamma-1") == {}
    assert ask(store, "beta-1")[put].bytes_per_s == 97.0
