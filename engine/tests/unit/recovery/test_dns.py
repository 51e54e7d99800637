"""Updates of DNS against a server that takes them, over loopback and signed."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import dns.name
import dns.tsig
import pytest
from doubles.name_server import NameServer
from farshore.errors import Invalid, Permanent, Retry
from farshore.model.guest import Dns, DnsRecord, DnsUpdateParams
from farshore.recovery.steps.dns import update

SECRET = base64.b64encode(b"a key of thirty-two octets, made").decode()
KEY = f"farshore:{SECRET}"


@pytest.fixture
def server() -> Iterator[NameServer]:
    key = dns.tsig.Key("farshore", SECRET, dns.name.from_text("hmac-sha256"))
    with NameServer(("shop.example.", "9.10.in-addr.arpa."), key) as running:
        yield running


def params(server: NameServer, *records: tuple[str, str], **more: object) -> DnsUpdateParams:
    where = {"server": "127.0.0.1", "port": server.port, "zone": "shop.example", "timeout": 20, **more}
    return DnsUpdateParams(
        dns=Dns.model_validate(where), records=tuple(DnsRecord(name=name, address=to) for name, to in records)
    )


def test_names_get_their_new_addresses_and_lose_the_old_ones(server: NameServer) -> None:
    server.records["web.shop.example.", "A"] = {"10.1.1.5"}
    asked = params(server, ("web", "10.9.0.11"), ("www.shop.example.", "10.9.0.11"), reverse_zone="9.10.in-addr.arpa")
    for _ in range(2):
        result = update(asked, KEY)
        assert result.findings == ()
        assert server.records == {
            ("web.shop.example.", "A"): {"10.9.0.11"},
            ("www.shop.example.", "A"): {"10.9.0.11"},
            ("11.0.9.10.in-addr.arpa.", "PTR"): {"web.shop.example."},
        }
    assert "web.shop.example. A 10.9.0.11" in result.updated[0]


def test_names_and_addresses_outside_the_zones_are_told(server: NameServer) -> None:
    asked = params(server, ("web.other.example.", "10.8.0.11"), reverse_zone="9.10.in-addr.arpa")
    result = update(asked, KEY)
    assert [finding.code for finding in result.findings] == ["dns-outside-zone"] * 2
    assert server.records == {}


@pytest.mark.parametrize(
    "secret", [None, "farshore:" + base64.b64encode(b"another key").decode(), f"stranger:{SECRET}"]
)
def test_a_server_that_refuses_is_no_success(server: NameServer, secret: str | None) -> None:
    with pytest.raises(Permanent) as caught:
        update(params(server, ("web", "10.9.0.11")), secret)
    assert caught.value.code == "dns-refused"
    assert SECRET not in str(caught.value)
    assert server.records == {}


def test_a_key_in_another_form_and_a_server_that_is_not_there(server: NameServer) -> None:
    with pytest.raises(Invalid):
        update(params(server, ("web", "10.9.0.11")), "no key")
    with pytest.raises(Retry):
        update(params(server, ("web", "10.9.0.11"), port=1), KEY)
