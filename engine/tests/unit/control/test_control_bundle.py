"""Site bundles: who can open which, and into what they are opened."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from farshore import durable
from farshore.cli.local import recover
from farshore.control import bundle, home, past, sealing, takeover, views
from farshore.control.context import Context, open_context
from farshore.control.runs import ledger, orders, reports
from farshore.control.sealing import Header, RecoveryKey
from farshore.control.store import Store, settings
from farshore.control.store.records import (
    Fence,
    Node,
    Plan,
    PlanMachine,
    PlanRevision,
    Site,
    SiteBundle,
    Task,
    Token,
)
from farshore.control.takeover import Taken
from farshore.errors import Conflict, Corruption, FarshoreError, Invalid, NotFound
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.machine import MachineFacts
from farshore.recovery import evidence
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

SIGNER = Ed25519PrivateKey.generate()
KEY = sealing.make_key("cat-1", SIGNER.public_key())


def sealed(number: int = 1, generation: int = 1, key: RecoveryKey = KEY, **content: Any) -> str:
    header = Header(
        catalog_id=key.catalog_id,
        generation=generation,
        number=number,
        written_at=1.0,
        recovery_key=sealing.key_id(key.public),
    )
    return sealing.seal({"number": number, **content}, header, key.public, SIGNER)


def refused(text: str, key: RecoveryKey = KEY) -> FarshoreError:
    with pytest.raises(FarshoreError) as caught:
        sealing.unseal(text, key)
    return caught.value


def test_the_key_is_a_text_that_people_keep() -> None:
    assert sealing.read_key(KEY.text) == KEY
    assert sealing.read_key(KEY.text.replace("\n", "\r\n")) == KEY
    assert KEY.secret.hex() not in repr(KEY)
    for wrong in ("", "hello", KEY.text.replace("signed-by", "signed"), KEY.text[:-30]):
        with pytest.raises(Invalid) as caught:
            sealing.read_key(wrong)
        assert (caught.value.code, caught.value.field) == ("recovery-key-invalid", "--recovery-key")


def test_only_the_key_s_holder_reads_it_and_only_the_installation_writes_it() -> None:
    text = sealed(7, secret="the authority's key")
    assert sealing.unseal(text, KEY)[1]["secret"] == "the authority's key"
    assert "the authority's key" not in text
    other = sealing.make_key("cat-1", SIGNER.public_key())
    assert (refused(text, other).code, refused(text, other).field) == ("recovery-key-wrong", "--recovery-key")
    foreign = sealing.make_key("cat-2", SIGNER.public_key())
    assert refused(text, foreign).code == "bundle-foreign"
    # Whoever knows the public half can seal; that it was written here, only the installation's own key proves.
    forged = sealing.seal({}, sealing.peek(text), KEY.public, Ed25519PrivateKey.generate())
    assert refused(forged).code == "bundle-damaged"
    assert refused(text.replace("farshore-bundle-1", "farshore-bundle-9")).code == "bundle-format"


@given(st.integers(min_value=0), st.integers(1, 255))
def test_every_changed_byte_and_every_cut_is_found(at: int, by: int) -> None:
    text = sealed(3, plans=["shop"])
    data = bytearray(text.encode())
    at %= len(data) - 1
    data[at] ^= by
    try:
        broken = data.decode()
        changed = json.loads(broken) != json.loads(text)
    except ValueError:
        broken, changed = data.decode(errors="replace"), True
    if changed:
        assert refused(broken).code in {"bundle-damaged", "bundle-foreign", "bundle-format", "recovery-key-wrong"}
    assert refused(text[:at]).code == "bundle-damaged"


def test_a_bit_that_says_nothing_is_found_too() -> None:
    """The last digit of a signature of 64 bytes has four bits that stand for nothing."""
    text = sealed(3)
    end = text.rindex("==")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = digits[digits.index(text[end - 1]) ^ 1]
    assert refused(f"{text[: end - 1]}{twin}{text[end:]}").code == "bundle-damaged"


def test_the_newest_whole_one_is_taken_and_what_was_passed_over_is_told() -> None:
    foreign = sealed(99, key=sealing.make_key("cat-2", SIGNER.public_key()))
    found = [
        ("3", sealed(3)),
        ("g2", sealed(2, 2)),
        ("cut", sealed(5, 2)[:200]),
        ("foreign", foreign),
        ("1", sealed(1)),
    ]
    taken = takeover.choose(found, KEY)
    assert (taken.name, taken.header.order) == ("g2", (2, 2))
    assert [one.split(":")[0] for one in taken.passed_over] == ["cut"]
    with pytest.raises(Corruption) as caught:
        takeover.choose([("cut", sealed(5)[:200])], KEY)
    assert caught.value.code == "bundle-damaged"
    with pytest.raises(Invalid) as other:
        takeover.choose([("foreign", foreign)], KEY)
    assert other.value.code == "bundle-foreign"
    with pytest.raises(NotFound):
        takeover.choose([], KEY)


@pytest.fixture
def lost(tmp_path: Path) -> Context:
    """A control plane with a plan in epoch 2, a fence that waits, and one report."""
    ctx = open_context(home.initialise(tmp_path / "lost"))
    with ctx.store.write() as tx:
        for name in ("alpha", "beta"):
            tx.add(Site(name=name, platform="file", created_at=1.0))
        definition = {"name": "shop", "source_site": "alpha", "target_site": "beta", "machines": [{"name": "db"}]}
        common = {"source": "name: shop", "definition": definition}
        tx.add(Plan(name="shop", revision=3, active_site="beta", epoch=2, created_at=1.0, changed_at=2.0, **common))
        tx.flush()
        tx.add(PlanRevision(plan="shop", revision=3, created_at=1.0, actor="me", **common))
        tx.add(
            PlanMachine(plan="shop", name="db", position=0, site="alpha", machine_id="id-db", group_id="grp-shop=db")
        )
        fence = {"site": "alpha", "machine_id": "id-db", "plan": "shop", "machine": "db", "epoch": 2}
        tx.add(Fence(**fence, created_at=1.0, attempts=4, task_id="task-gone", not_before=1e9))
    return ctx


def taken(ctx: Context) -> Taken:
    with ctx.store.read() as session:
        content = json.loads(json.dumps(bundle.content(session, ctx)))
    header = Header(catalog_id=content["catalog_id"], generation=1, number=1, written_at=1.0, recovery_key="k")
    return Taken("bundle", header, content)


def manifest(ctx: Context, **changes: Any) -> Manifest:
    with ctx.store.read() as session:
        catalog_id = settings.catalog_id(session)
    return Manifest(
        **{
            "checkpoint_id": "cp-1",
            "group_id": "grp-shop=db",
            "plan": "shop",
            "plan_revision": 3,
            "catalog_id": catalog_id,
            "generation": 1,
            "epoch": 2,
            "term": 1,
            "sequence": 1,
            "source_site": "alpha",
            "target_site": "beta",
            "level": "machine",
            "ordered_at": 1.0,
            "taken_at": 1.0,
            "machines": (MachineFacts(machine_id="id-db", name="db"),),
            "disks": (DiskPoint(disk_key="id-db/vda", size_bytes=1, point="p", tree_root="0" * 64, source_point="s"),),
            **changes,
        }
    )


def files(home_path: Path) -> dict[Path, bytes]:
    """Return what a home holds; SQLite's shared memory changes with each reader."""
    return {
        path: path.read_bytes() for path in home_path.rglob("*") if path.is_file() and not path.name.endswith("-shm")
    }


def test_the_next_control_plane_knows_what_the_lost_one_knew(lost: Context, tmp_path: Path) -> None:
    path = tmp_path / "next"
    outcome = takeover.take_over(path, taken(lost), [manifest(lost)])
    assert (outcome.generation, outcome.plans, outcome.sites, outcome.warnings) == (2, ["shop"], ["alpha", "beta"], [])
    following = home.initialise(path)
    for name in ("ca.key", "grant.key", "evidence.key", "recovery.pub"):
        assert (following.secrets / name).read_bytes() == (lost.home.secrets / name).read_bytes(), name
    assert not following.recovery_key.exists()  # the one that people have goes on opening its bundles
    assert (following.secrets / "ca.key").stat().st_mode & 0o777 == 0o600
    store = Store(following.database)
    with store.read() as session:
        plan = session.get_one(Plan, "shop")
        assert (plan.epoch, plan.active_site, plan.revision) == (2, "beta", 3)
        fence = session.get_one(Fence, ("alpha", "id-db"))
        assert (fence.attempts, fence.task_id, fence.epoch, fence.done_at) == (0, None, 2, None)
        admins = [token for token in session.query(Token) if token.revoked_at is None]
        assert len(admins) == 1  # what lay on the lost machine opens nothing here
    store.close()


def test_a_home_that_is_not_empty_is_left_alone_and_a_broken_off_takeover_begins_again(
    lost: Context, tmp_path: Path
) -> None:
    bundled = taken(lost)
    before = files(lost.home.path)
    with pytest.raises(Conflict) as caught:
        takeover.take_over(lost.home.path, bundled)
    assert (caught.value.code, caught.value.field) == ("home-not-empty", "--home")
    assert files(lost.home.path) == before

    path = tmp_path / "next"
    half = taken(lost)
    half.content["records"]["plan"][0]["revision"] = None  # not what the records take: it breaks off in the middle
    with pytest.raises(Exception, match="NOT NULL"):
        takeover.take_over(path, half)
    with pytest.raises(Conflict) as unfinished:
        home.initialise(path)
    assert unfinished.value.code == "takeover-unfinished"
    assert takeover.take_over(path, taken(lost)).generation == 2
    assert home.initialise(path).path == path


@pytest.mark.parametrize("newer", [{"epoch": 3}, {"generation": 4}])
def test_a_bundle_that_is_older_than_the_manifests_is_refused(
    lost: Context, tmp_path: Path, newer: dict[str, int]
) -> None:
    manifests = [manifest(lost, **newer), manifest(lost, catalog_id="another", epoch=9, generation=9)]
    path = tmp_path / "next"
    with pytest.raises(Conflict) as caught:
        takeover.take_over(path, taken(lost), manifests)
    assert caught.value.code == "bundle-stale"
    assert not path.exists()
    outcome = takeover.take_over(path, taken(lost), manifests, accept_stale=True)
    assert outcome.generation == max(1, newer.get("generation", 0)) + 1
    store = Store(path / "farshore.db")
    with store.read() as session:
        plan = session.get_one(Plan, "shop")
        assert plan.epoch == max(2, newer.get("epoch", 0))
        if "epoch" in newer:
            assert plan.activity == "inactive"  # where its machines run now, nobody knows
    store.close()


def test_what_is_newer_without_harm_is_told(lost: Context, tmp_path: Path) -> None:
    manifests = [manifest(lost, plan_revision=5), manifest(lost, plan="wiki")]
    outcome = takeover.take_over(tmp_path / "next", taken(lost), manifests)
    assert [warning.split("'")[1] for warning in outcome.warnings] == ["shop", "wiki"]


def test_a_bundle_of_a_newer_version_is_not_guessed_at(lost: Context, tmp_path: Path) -> None:
    newer = taken(lost)
    newer.content["schema"] = "9999"
    with pytest.raises(Invalid) as caught:
        takeover.take_over(tmp_path / "next", newer)
    assert caught.value.code == "bundle-newer"


def test_the_digest_follows_what_was_decided_and_not_what_passes(lost: Context) -> None:
    def digest() -> str:
        with lost.store.read() as session:
            return bundle.digest(session)

    first = digest()
    with lost.store.write() as tx:
        tx.get_one(Site, "alpha").inventory_at = 5.0
        tx.get_one(Fence, ("alpha", "id-db")).attempts = 9
        tx.get_one(Plan, "shop").changed_at = 9.0
    assert digest() == first
    with lost.store.write() as tx:
        tx.get_one(Plan, "shop").epoch = 3
    second = digest()
    with lost.store.write() as tx:
        tx.get_one(Fence, ("alpha", "id-db")).done_at = 7.0
    assert len({first, second, digest()}) == 3


def test_a_site_that_is_left_in_a_hurry_hears_nothing_until_its_machines_stay_down(lost: Context) -> None:
    def told() -> list[str]:
        bundle.Keeper(lost).tend()
        with lost.store.write() as tx:
            found = [task.site for task in tx.scalars(select(Task).where(Task.kind == "bundle-put"))]
            tx.execute(delete(SiteBundle))
            tx.execute(delete(Task))
        return sorted(found)

    with lost.store.write() as tx:
        for site in ("alpha", "beta"):
            known = {"roles": [], "data_address": "", "created_at": 1.0, "last_seen": time.time()}
            tx.add(Node(name=f"{site}-1", site=site, **known))
    assert told() == ["beta"], "an old primary at alpha waits for its fence"
    with lost.store.write() as tx:
        tx.get_one(Fence, ("alpha", "id-db")).done_at = 7.0
    assert told() == ["alpha", "beta"]
    with lost.store.write() as tx:
        run = ledger.create(tx, "failover", tx.get_one(Plan, "shop"), "me", {"mode": "unplanned"})
        run.from_site, run.to_site = "beta", "alpha"
    assert told() == ["alpha"], "a forced failover is leaving beta"


def test_a_site_that_is_deleted_before_its_bundle_is_written_is_passed_over(lost: Context) -> None:
    with lost.store.write() as tx:
        bundle._renew(tx, lost, ["gone"], bundle.digest(tx))
    with lost.store.read() as session:
        assert session.get(SiteBundle, "gone") is None


def test_bundles_are_found_in_a_pool_in_its_store_or_as_a_file(lost: Context, tmp_path: Path) -> None:
    key_file = lost.home.recovery_key
    key = sealing.read_key(key_file.read_text())
    found = taken(lost)
    header = found.header.model_copy(update={"recovery_key": sealing.key_id(key.public)})
    text = sealing.seal(found.content, header, key.public, lost.evidence_key)
    file = tmp_path / "pool/manifests" / header.name
    durable.make_dir(file.parent)
    file.write_text(text)
    for number, source in enumerate((tmp_path / "pool", tmp_path / "pool/manifests", file, f"file://{tmp_path}/pool")):
        outcome = recover.take_over(tmp_path / f"next-{number}", str(source), key_file)
        assert outcome.catalog_id == key.catalog_id
    for source, wanted in ((tmp_path / "nowhere", "not-found"), (lost.home.secrets, "bundle-missing")):
        with pytest.raises(NotFound) as caught:
            recover.take_over(tmp_path / "other", str(source), key_file)
        assert caught.value.code == wanted
    with pytest.raises(Invalid) as missing:
        recover.take_over(tmp_path / "other", str(file), None)
    assert missing.value.code == "recovery-key-missing"


def drilled(ctx: Context, number: int) -> str:
    """Let a drill of the plan end with evidence."""
    with ctx.store.write() as tx:
        run = ledger.create(tx, "drill", tx.get_one(Plan, "shop"), "me", {"number": number}, workflow=True)
        ledger.add_machines(tx, run, ["db"])
        ledger.done(tx, run.run_id, "sweep", "nothing is left")
        ledger.finish(tx, run, "succeeded")
        reports.seal(tx, ctx, run)
        return run.run_id


def test_runs_and_their_evidence_are_carried_over_and_the_chain_goes_on(lost: Context, tmp_path: Path) -> None:
    first, second = drilled(lost, 1), drilled(lost, 2)
    with lost.store.read() as session:
        shown = [views.run(session, run_id) for run_id in (second, first)]
        texts = [orders.rendering(session, second, name) for name in ("html", "junit")]
    path = tmp_path / "next"
    takeover.take_over(path, taken(lost))
    following = open_context(home.initialise(path))
    with following.store.read() as session:
        assert views.runs(session) == shown
        documents = [orders.report(session, run_id) for run_id in (first, second)]
        assert [orders.rendering(session, second, name) for name in ("html", "junit")] == texts
    for document in documents:
        evidence.verify(document, following.evidence_key.public_key())
    third = drilled(following, 3)
    with following.store.read() as session:
        newest = orders.report(session, third)
    assert (newest["position"], newest["previous"]) == (3, documents[-1]["digest"])
    # What was carried over is carried on.
    assert [entry["run"][0]["run_id"] for entry in taken(following).content["past"]] == [third, second, first]


def test_a_bundle_tells_of_the_newest_runs_and_of_no_more_than_fits(lost: Context) -> None:
    runs = [drilled(lost, number) for number in range(3)]
    with lost.store.read() as session:
        whole = past.carried(session)
        size = len(json.dumps(whole[0]))
        fits = past.carried(session, int(size * 2.5))
    assert [entry["run"][0]["run_id"] for entry in whole] == runs[::-1]
    assert [entry["run"][0]["run_id"] for entry in fits] == runs[:0:-1]


def test_a_bundle_from_before_runs_were_in_it_is_taken(lost: Context, tmp_path: Path) -> None:
    bundled = taken(lost)
    del bundled.content["past"]
    assert takeover.take_over(tmp_path / "next", bundled).generation == 2
