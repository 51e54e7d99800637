import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from farshore.errors import Fenced, Forbidden
from farshore.model.grant import Grant, GrantDisk, sign, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
GRANT = Grant(
    grant_id="g-1",
    catalog_id="cat-1",
    generation=1,
    plan="shop",
    group_id="grp-shop",
    session_id="s-1",
    source_site="alpha",
    target_site="beta",
    source_node="alpha-1",
    target_node="beta-1",
    source_thumbprint="aa",
    target_thumbprint="bb",
    epoch=1,
    term=1,
    disks=(GrantDisk(disk_key="m/vda", size_bytes=1 << 20, source_point="pt-1"),),
    not_before=1000.0,
    not_after=1600.0,
)


def test_signed_grant_is_read_back():
    assert verify(sign(GRANT, KEY), KEY.public_key(), now=1200.0) == GRANT


def test_every_changed_byte_is_refused():
    text = sign(GRANT, KEY)
    for index in range(0, len(text), 7):
        flipped = text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]
        with pytest.raises(Forbidden):
            verify(flipped, KEY.public_key(), now=1200.0)


def test_another_key_is_refused():
    with pytest.raises(Forbidden):
        verify(sign(GRANT, Ed25519PrivateKey.generate()), KEY.public_key(), now=1200.0)


@pytest.mark.parametrize("now", [1000.0 - 121, 1600.0 + 121])
def test_out_of_time_is_fenced(now):
    with pytest.raises(Fenced, match="validity"):
        verify(sign(GRANT, KEY), KEY.public_key(), now=now)


@pytest.mark.parametrize("text", ["", ".", "a.b", "a.b.c", base64.urlsafe_b64encode(b"{}").decode() + ".AAAA"])
def test_what_is_no_grant_is_refused(text):
    with pytest.raises(Forbidden):
        verify(text, KEY.public_key(), now=1200.0)
