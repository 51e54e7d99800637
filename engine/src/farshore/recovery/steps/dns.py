"""Names of recovered machines in DNS: a zone's primary server is told their addresses (RFC 2136; TSIG: RFC 8945)."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Final

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.reversename
import dns.tsig
import dns.tsigkeyring
import dns.update

from farshore.errors import Invalid, Permanent, Retry
from farshore.model.guest import Dns, DnsRecord, DnsUpdateParams, DnsUpdateResult
from farshore.model.machine import Finding

_ALGORITHM: Final = "hmac-sha256"


def update(params: DnsUpdateParams, secret: str | None) -> DnsUpdateResult:
    """Give every name its address; what it had before is replaced. Done twice, it changes nothing.

    ``secret`` is the TSIG key as ``NAME:BASE64`` or ``ALGORITHM:NAME:BASE64``.

    Raises:
        Invalid: the key is in another form.
        Permanent: the server refuses.
        Retry: it does not answer.
    """
    settings = params.dns
    key = _key(secret) if secret is not None else None
    zone = dns.name.from_text(settings.zone)
    forward = _message(zone, key)
    updated: list[str] = []
    findings: list[Finding] = []
    for record in params.records:
        name = dns.name.from_text(record.name, zone)
        if not name.is_subdomain(zone):
            findings.append(_outside(record, settings.zone, "recovery.dns"))
            continue
        kind = "A" if ip_address(record.address).version == 4 else "AAAA"
        forward.replace(name, int(settings.ttl), kind, record.address)
        updated.append(f"{settings.zone}: {name} {kind} {record.address}")
    if updated:
        _send(forward, settings)
    if settings.reverse_zone is not None:
        updated += _reverse(params, settings.reverse_zone, zone, key, findings)
    return DnsUpdateResult(updated=tuple(updated), findings=tuple(findings))


def _reverse(
    params: DnsUpdateParams,
    reverse_zone: str,
    forward: dns.name.Name,
    key: dns.tsig.Key | None,
    findings: list[Finding],
) -> list[str]:
    """Give every address its first name."""
    zone = dns.name.from_text(reverse_zone)
    message = _message(zone, key)
    updated = []
    seen: set[str] = set()
    for record in params.records:
        pointer = dns.reversename.from_address(record.address)
        if record.address in seen:
            continue
        seen.add(record.address)
        if not pointer.is_subdomain(zone):
            findings.append(_outside(record, reverse_zone, "dns.reverse_zone"))
            continue
        name = dns.name.from_text(record.name, forward)
        message.replace(pointer, int(params.dns.ttl), "PTR", str(name))
        updated.append(f"{reverse_zone}: {pointer} PTR {name}")
    if updated:
        _send(message, params.dns)
    return updated


def _message(zone: dns.name.Name, key: dns.tsig.Key | None) -> dns.update.UpdateMessage:
    message = dns.update.UpdateMessage(zone)
    if key is not None:
        message.use_tsig(key)
    return message


def _key(secret: str) -> dns.tsig.Key:
    parts = secret.strip().split(":")
    algorithm = parts[0] if len(parts) == 3 else _ALGORITHM
    if len(parts) not in {2, 3}:
        raise Invalid(
            "the secret with the TSIG key is in another form",
            code="dns-key-invalid",
            field="dns.key",
            hint="Write NAME:BASE64 or ALGORITHM:NAME:BASE64 into its file.",
        )
    try:
        return dns.tsig.Key(parts[-2], parts[-1], dns.name.from_text(algorithm))
    except (dns.exception.DNSException, ValueError) as error:
        raise Invalid("the TSIG key is no key", code="dns-key-invalid", field="dns.key") from error


def _send(message: dns.update.UpdateMessage, settings: Dns) -> None:
    where = f"{settings.server}:{settings.port}"
    try:
        found = socket.getaddrinfo(settings.server, settings.port, type=socket.SOCK_STREAM)
        answer = dns.query.tcp(message, str(found[0][4][0]), settings.timeout, settings.port)
    except dns.tsig.PeerError as error:
        raise _refused(where, str(error)) from error
    except (OSError, EOFError, dns.exception.Timeout) as error:
        raise Retry(f"name server {where} does not answer: {error}", code="dns-unreachable", server=where) from error
    except dns.exception.DNSException as error:
        raise _refused(where, str(error) or type(error).__name__) from error
    if answer.rcode() != dns.rcode.NOERROR:
        raise _refused(where, dns.rcode.to_text(answer.rcode()))


def _refused(where: str, said: str) -> Permanent:
    return Permanent(
        f"name server {where} refuses the update: {said}",
        code="dns-refused",
        hint="Let the key update the zone there, and compare the clocks of both machines.",
        server=where,
    )


def _outside(record: DnsRecord, zone: str, field: str) -> Finding:
    return Finding(
        code="dns-outside-zone",
        severity="warning",
        subject=record.name,
        message=f"{record.name} ({record.address}) is not in zone {zone}",
        remedy=f"Correct {field}.",
    )
