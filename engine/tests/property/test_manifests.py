"""Retention never takes what it must not, and manifests survive their encoding."""

from __future__ import annotations

from farshore.checkpoints.manifest import decode, encode, key_of
from farshore.control.scheduling.retention import Kept, surplus
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
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=20), st.integers(1, 10))
def test_retention_keeps_what_it_must(flags: list[tuple[bool, bool, bool]], count: int) -> None:
    points = [Kept(f"cp-{number}", *each) for number, each in enumerate(flags)]
    gone = surplus(points, count)
    must_stay = {one.checkpoint_id for one in points if one.pinned or one.in_use}
    must_stay |= {one.checkpoint_id for one in points[-1:]}
    must_stay |= {one.checkpoint_id for one in [one for one in points if not one.suspect][-1:]}
    assert not set(gone) & must_stay
    assert gone == [one.checkpoint_id for one in points if one.checkpoint_id in gone]  # oldest first, none twice
    counted = [one for one in points if not one.pinned]
    assert len(counted) - len(gone) >= min(count, len(counted))
    if not must_stay - {one.checkpoint_id for one in points[-1:]}:
        assert len(counted) - len(gone) <= count


@settings(max_examples=200)
@given(names, st.integers(0, 10**9))
def test_manifests_survive_their_encoding(plan: str, sequence: int) -> None:
    one = manifest(sequence, plan=plan)
    assert decode(encode(one), key_of(one)) == one
    assert encode(decode(encode(one), key_of(one))) == encode(one)
