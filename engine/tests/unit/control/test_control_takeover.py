"""A replication that is given to somebody else takes along what was told of its drafts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles import shop_records
from doubles.manifests import a_manifest
from farshore.control import home, tasks
from farshore.control.context import Context, open_context
from farshore.control.scheduling import cycles
from farshore.control.store.database import Transaction
from farshore.control.store.records import Cycle, Node, SiteLink, Task
from farshore.model.grant import verify
from farshore.model.task import DraftCover, PollReply, PollRequest, ReplicateDisk, ReplicateParams

COVER = DraftCover(task_id="t-1", disk_key="id-db/vda", draft_key="cp-1-vda.1", ranges=((0, 4096), (8192, 65536)))


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    opened = open_context(home.initialise(tmp_path / "home", port=1, node_port=2))
    opened.store.migrate()
    with opened.store.write() as tx:
        from farshore.control.store import settings

        settings.ensure_identity(tx)
        shop_records.plan(tx)
        shop_records.cycle(tx, state="replicate", point_id="pt-1", checkpoint_id="cp-1", task_id="t-1")
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
        tx.add(_task(tx))
    yield opened
    opened.store.close()


def _task(tx: Transaction) -> Task:
    manifest = a_manifest(group_id=shop_records.GROUP)
    disks = tuple(
        ReplicateDisk(disk_key=key, size_bytes=1 << 20, incremental=False) for key in ("id-db/vda", "id-db/b")
    )
    params = ReplicateParams(grant="", address="", manifest=manifest, disks=disks)
    return Task(
        task_id="t-1",
        key="t-1",
        kind="replicate",
        site="beta",
        role="replication",
        plan="shop",
        cycle_id=tx.get_one(Cycle, "cyc-1").cycle_id,
        state="queued",
        params=params.model_dump(mode="json"),
        created_at=1.0,
    )


def poll(ctx: Context, node: str, incarnation: str = "1", **changes: object) -> PollReply:
    with ctx.store.write() as tx:
        request = PollRequest.model_validate(
            {"node": node, "incarnation": incarnation, "version": "", "platform": "file", "data_port": 1, **changes}
        )
        return tasks.poll(tx, ctx, tx.get_one(Node, node), request, first=True)


def given(reply: PollReply) -> ReplicateParams:
    (task,) = reply.tasks
    return ReplicateParams.model_validate(task.params)


def test_a_new_process_gets_what_the_old_one_told(ctx: Context) -> None:
    first = given(poll(ctx, "beta-1"))
    assert [(disk.draft_key, disk.durable) for disk in first.disks] == [(None, ()), (None, ())]
    assert first.limits == ("link:alpha/beta", "plan:shop")
    poll(ctx, "beta-1", running=("t-1",), drafts=(COVER,))
    second = given(poll(ctx, "beta-1", incarnation="2"))
    assert second.manifest.term == 2
    assert [(disk.draft_key, disk.durable) for disk in second.disks] == [(COVER.draft_key, COVER.ranges), (None, ())]


def test_another_node_and_another_try_get_it_too(ctx: Context) -> None:
    poll(ctx, "beta-1")
    poll(ctx, "beta-1", running=("t-1",), drafts=(COVER,))
    with ctx.store.write() as tx:
        tx.get_one(Node, "beta-1").last_seen = 1.0
        tx.flush()
        tasks.take_back(tx, since=0.0)
    # The old holder comes back and tells of its draft: it is not asked any more.
    late = COVER.model_copy(update={"ranges": ((0, 1 << 20),)})
    assert given(poll(ctx, "beta-2")).disks[0].durable == COVER.ranges
    assert poll(ctx, "beta-1", running=("t-1",), drafts=(late,)).cancel == ("t-1",)
    with ctx.store.write() as tx:
        task = tx.get_one(Task, "t-1")
        assert task.drafts == {COVER.disk_key: {"draft_key": COVER.draft_key, "ranges": [[0, 4096], [8192, 65536]]}}
        task.state, task.error = "failed", {"duty": "Retry", "code": "any", "message": "passes"}
        cycles.advance(tx, "cyc-1")
        again = tx.get_one(Task, str(tx.get_one(Cycle, "cyc-1").task_id))
        assert again.task_id != "t-1"
        assert (again.term, again.drafts) == (3, task.drafts)


def test_where_the_target_listens_the_source_is_told_to_dial(ctx: Context) -> None:
    with ctx.store.write() as tx:
        link = SiteLink(source_site="alpha", target_site="beta", data_listen="target", bandwidth={}, created_at=1.0)
        tx.add(link)
    reply = poll(ctx, "beta-2")
    params = given(reply)
    assert (params.address, reply.links) == ("", ())
    with ctx.store.write() as tx:
        link = tx.get_one(SiteLink, ("alpha", "beta"))
        link.data_listen = "source"  # for the next cycle
        tx.get_one(Node, "beta-1").last_seen = 1.0
    (order,) = poll(ctx, "alpha-1").links
    grant = verify(params.grant, ctx.grant_key.public_key(), now=time.time())
    assert (order.node, order.address, order.thumbprint) == ("beta-2", "beta-2:9101", grant.target_thumbprint)
    assert grant.source_node == "alpha-1"


def test_nodes_of_a_site_share_its_replications(ctx: Context) -> None:
    with ctx.store.write() as tx:
        tx.get_one(Task, "t-1").state = "failed"
        for number in range(5):
            cycle = f"cyc-n{number}"
            shop_records.cycle(
                tx, cycle_id=cycle, state="replicate", point_id=f"pt-n{number}", checkpoint_id=f"cp-n{number}"
            )
            task = _task(tx)
            task.task_id = task.key = f"t-n{number}"
            task.cycle_id = cycle
            tx.add(task)
    first = [task.task_id for task in poll(ctx, "beta-1").tasks]
    assert first == ["t-n0", "t-n1", "t-n2"], "the larger half, for both are online"
    assert poll(ctx, "beta-1", running=first).tasks == (), "the rest is for the other one"
    with ctx.store.write() as tx:
        tx.get_one(Node, "beta-2").last_seen = 1.0
    assert [task.task_id for task in poll(ctx, "beta-1", running=first).tasks] == ["t-n3", "t-n4"], "which is silent"
    assert poll(ctx, "beta-2").tasks == ()
