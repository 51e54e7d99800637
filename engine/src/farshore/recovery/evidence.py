"""Evidence of a run: a report that shows any change made to it afterwards.

A report is canonical JSON with the digest of the report before it; both are covered by its own SHA-256 digest, which is
signed with Ed25519. Whoever holds the public key can check a report without this control plane.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jinja2 import Environment

from farshore.errors import Corruption
from farshore.units import format_duration, format_size

#: What the first report of a control plane follows.
ORIGIN: Final = "0" * 64
VERSION: Final = 1


def seal(body: dict[str, Any], *, position: int, previous: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the report that holds ``body`` (JSON values) as the ``position``-th, after the one called ``previous``."""
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    covered = {"version": VERSION, "position": position, "previous": previous, "body": body}
    digest = hashlib.sha256(_canonical(covered)).hexdigest()
    return {
        **covered,
        "digest": digest,
        "signature": base64.b64encode(key.sign(bytes.fromhex(digest))).decode(),
        "public_key": public.decode(),
    }


def verify(report: dict[str, Any], public_key: Ed25519PublicKey | None = None) -> None:
    """Check a report against a trusted key; without one only against the key that it carries itself.

    Raises:
        Corruption: a byte of it was changed, or another key signed it.
    """
    try:
        covered = {name: report[name] for name in ("version", "position", "previous", "body")}
        digest = hashlib.sha256(_canonical(covered)).hexdigest()
        if digest != report["digest"]:
            raise Corruption("the report was changed: its digest differs", code="report-changed", digest=digest)
        trusted = public_key
        if trusted is None:
            trusted = _carried(report["public_key"])
        trusted.verify(base64.b64decode(report["signature"], validate=True), bytes.fromhex(digest))
    except InvalidSignature as error:
        raise Corruption("the report's signature is not that of the key", code="report-forged") from error
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise Corruption("this is no report", code="report-invalid") from error


def _carried(pem: str) -> Ed25519PublicKey:
    key = serialization.load_pem_public_key(pem.encode())
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("no Ed25519 key")
    return key


def verify_chain(reports: list[dict[str, Any]], public_key: Ed25519PublicKey | None = None) -> None:
    """Check reports that follow each other, oldest first, none left out.

    Raises:
        Corruption: one was changed, or one is missing.
    """
    for index, report in enumerate(reports):
        verify(report, public_key)
        if index and (
            report["previous"] != reports[index - 1]["digest"]
            or report["position"] != reports[index - 1]["position"] + 1
        ):
            raise Corruption(
                f"report {report['position']} does not follow the one before it", code="report-chain-broken"
            )


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def html(report: dict[str, Any]) -> str:
    """Return a report as one page without scripts or outside references; all text is escaped."""
    return _PAGE.render(report=report, body=report["body"])


def _page() -> Environment:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = lambda value: "-" if value is None else format_duration(float(value))
    environment.filters["size"] = lambda value: format_size(float(value))
    return environment


_PAGE: Final = _page().from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ body.run.kind }} of {{ body.run.plan }}: {{ body.run.state }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde3e9; vertical-align: top; }
code { font-size: .85em; word-break: break-all; }
.succeeded, .green { color: #1a7f37; } .failed, .red { color: #b42318; }
@media (prefers-color-scheme: dark) { body { background: #12181f; color: #dfe6ee; } th, td { border-color: #2b3642; } }
</style>
</head>
<body>
<h1>{{ body.run.kind | capitalize }} of {{ body.run.plan }}:
 <span class="{{ body.run.state }}">{{ body.run.state }}</span></h1>
<table>
<tr><th>Run</th><td><code>{{ body.run.run_id }}</code></td></tr>
<tr><th>Ordered by</th><td>{{ body.run.actor }}</td></tr>
<tr><th>Plan revision</th><td>{{ body.plan.revision }} <code>sha256:{{ body.plan.digest }}</code></td></tr>
<tr><th>From, to</th><td>{{ body.plan.source_site }} → {{ body.plan.target_site }}</td></tr>
<tr><th>Began, ended</th><td>{{ body.run.started_at }}, {{ body.run.ended_at }}</td></tr>
{% if body.run.error %}<tr><th>Error</th><td class="failed">{{ body.run.error.message }}</td></tr>{% endif %}
</table>
<h2>Machines</h2>
<table>
<tr><th>Machine</th><th>State</th><th>RPO</th><th>RTO</th><th>Checkpoint</th><th>Address</th><th>Probes</th></tr>
{% for machine in body.run.machines %}
<tr><td>{{ machine.name }}</td><td class="{{ machine.state }}">{{ machine.state }}</td>
<td>{{ machine.rpo_s | duration }}</td><td>{{ machine.rto_s | duration }}</td>
<td><code>{{ machine.checkpoint_id or "-" }}</code></td><td>{{ machine.address or "-" }}</td>
<td>{% for probe in machine.probes %}
<div class="{{ "green" if probe.green else "red" }}">{{ probe.type }} {{ probe.target }}: \
{{ "green" if probe.green else "red" }} after {{ probe.seconds | duration }} {{ probe.detail }}</div>
{% endfor %}</td></tr>
{% endfor %}
</table>
<h2>Steps</h2>
<table>
<tr><th>Step</th><th>Machine</th><th>State</th><th>Began</th><th>Took</th><th>Detail</th></tr>
{% for step in body.run.steps %}
<tr><td>{{ step.name }}</td><td>{{ step.machine or "" }}</td><td class="{{ step.state }}">{{ step.state }}</td>
<td>{{ step.started_at or "" }}</td><td>{{ step.seconds | duration }}</td><td>{{ step.detail }}</td></tr>
{% endfor %}
</table>
{% if body.run.cycles %}
<h2>Cycles</h2>
<table>
<tr><th>Group</th><th>Checkpoint</th><th>Mode</th><th>Moved</th><th>Disks</th></tr>
{% for cycle in body.run.cycles if cycle.stats %}
<tr><td>{{ cycle.group_id }}</td><td><code>{{ cycle.checkpoint_id }}</code></td><td>{{ cycle.stats.mode }}</td>
<td>{{ cycle.stats.moved_bytes | size }}</td><td>{{ cycle.stats.disk_bytes | size }}</td></tr>
{% endfor %}
</table>
{% endif %}
<h2>Seal</h2>
<table>
<tr><th>Report</th><td>{{ report.position }}, follows <code>{{ report.previous }}</code></td></tr>
<tr><th>Digest</th><td><code>{{ report.digest }}</code></td></tr>
<tr><th>Signature (Ed25519)</th><td><code>{{ report.signature }}</code></td></tr>
</table>
</body>
</html>
"""
)
