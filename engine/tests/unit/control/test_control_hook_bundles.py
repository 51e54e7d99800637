"""Bundles of hooks in the records: kept while something refers to them, given to the nodes that need them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.control.planning import bundles
from farshore.control.store import Store
from farshore.control.store.database import Transaction
from farshore.control.store.records import HookBundle, Plan, PlanRevision, Site, Task
from farshore.errors import Invalid, NotFound
from farshore.model.plan import Plan as Definition
from farshore.recovery import bundle


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "a.db")
    opened.migrate()
    yield opened
    opened.close()


def definition(digest: str | None, file: str = "hooks/a.yml") -> Definition:
    return Definition.model_validate(
        {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "beta",
            "machines": [{"name": "db"}],
            "hooks": {"pre_drill": file},
            "bundle": digest,
        }
    )


def content(text: str) -> tuple[bytes, str]:
    tar = bundle.pack({"hooks/a.yml": text.encode()})
    return tar, bundle.digest_of(tar)


def put(tx: Transaction, revision: int, tar: bytes) -> str:
    """Make the plan's next revision, as applying it does."""
    digest = bundle.digest_of(tar)
    bundles.keep(tx, tar, "ada")
    dumped = definition(digest).model_dump(mode="json")
    plan = tx.get(Plan, "shop")
    if plan is None:
        for site in ("alpha", "beta"):
            tx.add(Site(name=site, platform="file", created_at=0.0))
        plan = Plan(name="shop", created_at=0.0, active_site="alpha")
        tx.add(plan)
    plan.revision, plan.definition, plan.source, plan.changed_at = revision, dumped, "", 0.0
    tx.flush()
    tx.add(PlanRevision(plan="shop", revision=revision, source="", definition=dumped, created_at=0.0, actor="ada"))
    tx.flush()
    return digest


def test_a_bundle_stays_while_a_revision_names_it_and_goes_with_the_last(store: Store) -> None:
    with store.write() as tx:
        first = put(tx, 1, content("1")[0])
        second = put(tx, 2, content("2")[0])
        assert {row.digest for row in tx.query(HookBundle)} == {first, second}
        tx.delete(tx.get_one(PlanRevision, ("shop", 1)))
        tx.flush()
        third = put(tx, 3, content("3")[0])
        assert {row.digest for row in tx.query(HookBundle)} == {second, third}


def test_a_plan_keeps_its_bundle_until_other_files_are_named(store: Store) -> None:
    tar, digest = content("1")
    with store.write() as tx:
        assert bundles.settle(tx, definition(None), None) == (
            definition(None),
            [(("hooks", "pre_drill"), "hooks/a.yml")],
        )
        assert bundles.settle(tx, definition(None), tar) == (definition(digest), [])
        put(tx, 1, tar)
        assert bundles.settle(tx, definition("0" * 64), None) == (definition(digest), [])
        other = definition(None, "hooks/b.yml")
        assert bundles.settle(tx, other, None) == (other, [(("hooks", "pre_drill"), "hooks/b.yml")])


def test_a_node_gets_what_its_own_task_needs(store: Store) -> None:
    tar, digest = content("1")
    with store.write() as tx:
        bundles.keep(tx, tar, "ada")
        tx.add(
            Task(
                task_id="t-1",
                key="k",
                kind="hook",
                site="beta",
                node="beta-1",
                state="assigned",
                params={"bundle": digest},
                created_at=time.time(),
            )
        )
        tx.flush()
        assert bundles.for_node(tx, digest, "beta-1") == tar
        for node, wanted in (("alpha-1", digest), ("beta-1", "0" * 64)):
            with pytest.raises(NotFound):
                bundles.for_node(tx, wanted, node)


def test_files_that_are_no_base64_are_refused() -> None:
    with pytest.raises(Invalid) as caught:
        bundles.read({"hooks/a.yml": "???"})
    assert caught.value.field == "files"
