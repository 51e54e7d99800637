"""Retention never takes what it must not, and manifests survive their encoding."""

from __future__ import annotations

from farshore.checkpoints.manifest import decode, encode, key_of
from farshore.checkpoints.retention import to_drop
from farshore.model.checkpoint import Manifest
from hypothesis import given, settings
from hypothesis import strategies as st

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


def manifest(sequence: int, epoch: int = 1, plan: str = "p") -> Manifest:
    return Manifest(
        checkpoint_id=f"cp-{epoch}-{sequence}",
        group_id="grp",
        plan=plan,
        plan_revision=1,
        catalog_id="c",
        generation=1,
        epoch=epoch,
        term=1,
        sequence=sequence,
        source_site="a",
        target_site="b",
        level="machine",
        ordered_at=1.0,
        taken_at=1.0,
        machines=(),
        disks=(),
    )


@settings(max_examples=300)
@given(st.sets(st.tuples(st.integers(1, 3), st.integers(1, 30)), max_size=20), st.integers(0, 10), st.data())
def test_retention_keeps_what_it_must(places: set[tuple[int, int]], keep: int, data: st.DataObject) -> None:
    manifests = [manifest(sequence, epoch) for epoch, sequence in places]
    ids = [one.checkpoint_id for one in manifests]
    pinned = set(data.draw(st.lists(st.sampled_from(ids)))) if ids else set[str]()
    in_use = set(data.draw(st.lists(st.sampled_from(ids)))) if ids else set[str]()
    dropped = [one.checkpoint_id for one in to_drop(manifests, keep, pinned, in_use)]
    ordered = [one.checkpoint_id for one in sorted(manifests, key=lambda one: (one.epoch, one.sequence))]
    assert not set(dropped) & (pinned | in_use)
    assert len(set(dropped)) == len(dropped)
    assert not ordered or ordered[-1] not in dropped
    stay = [one for one in ordered if one not in dropped and one not in pinned and one not in in_use]
    assert len(stay) <= max(keep, 1)
    # The oldest go first: none that is free and older than a dropped one stays.
    if dropped:
        oldest = ordered[: ordered.index(dropped[-1]) + 1]
        assert all(one in dropped or one in pinned or one in in_use for one in oldest)


@settings(max_examples=200)
@given(names, st.integers(0, 10**9))
def test_manifests_survive_their_encoding(plan: str, sequence: int) -> None:
    one = manifest(sequence, plan=plan)
    assert decode(encode(one), key_of(one)) == one
    assert encode(decode(encode(one), key_of(one))) == encode(one)
