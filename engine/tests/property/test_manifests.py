"""Retention never takes what it must not, and manifests survive their encoding."""

from __future__ import annotations

from doubles.manifests import a_manifest
from farshore.checkpoints.manifest import decode, encode, key_of
from farshore.model.checkpoint import Manifest
from hypothesis import given, settings
from hypothesis import strategies as st

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


def manifest(sequence: int, epoch: int = 1, plan: str = "p") -> Manifest:
    return a_manifest(checkpoint_id=f"cp-{epoch}-{sequence}", plan=plan, epoch=epoch, sequence=sequence)


@settings(max_examples=200)
@given(names, st.integers(0, 10**9))
def test_manifests_survive_their_encoding(plan: str, sequence: int) -> None:
    one = manifest(sequence, plan=plan)
    assert decode(encode(one), key_of(one)) == one
    assert encode(decode(encode(one), key_of(one))) == encode(one)
