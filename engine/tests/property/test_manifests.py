"""Retention never takes what it must not, and manifests survive their encoding."""

from __future__ import annotations

from farshore.checkpoints.manifest import decode, encode, key_of
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


@settings(max_examples=200)
@given(names, st.integers(0, 10**9))
def test_manifests_survive_their_encoding(plan: str, sequence: int) -> None:
    one = manifest(sequence, plan=plan)
    assert decode(encode(one), key_of(one)) == one
    assert encode(decode(encode(one), key_of(one))) == encode(one)
