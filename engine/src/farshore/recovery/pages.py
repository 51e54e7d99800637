"""The evidence of a run as a page for people: no scripts, nothing from elsewhere, all text escaped. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment

from farshore.units import KIB, format_duration, format_size

#: Of pictures and texts of consoles together: a page travels with the site bundle, which has to stay small. What does
#: not fit lies beside the report, as all of it does.
MOST_SHOWN_BYTES: Final = 128 * KIB
#: Of one console; its end says how far a machine has come.
CONSOLE_CHARACTERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Sight:
    """What a machine showed: a picture of its screen, empty if it has none, and the text of its console."""

    screen: bytes
    console: str


def media_type(picture: bytes) -> str:
    """Return what kind of picture a platform gave of a screen."""
    return "image/jpeg" if picture.startswith(b"\xff\xd8\xff") else "image/png"


def html(body: dict[str, Any], position: int, previous: str, sights: Mapping[str, Sight] | None = None) -> str:
    """Return the page of the report with ``body``; ``sights`` are shown in it as far as there is room.

    Its digest is in the report, so it cannot hold that of the report.
    """
    return _PAGE.render(body=body, position=position, previous=previous, shown=_fitting(sights or {}))


def _fitting(sights: Mapping[str, Sight]) -> dict[str, dict[str, str]]:
    """Return what of ``sights`` is shown, by machine."""
    left = MOST_SHOWN_BYTES
    shown: dict[str, dict[str, str]] = {}
    for name, sight in sights.items():
        parts = {
            "picture": f"data:{media_type(sight.screen)};base64,{base64.b64encode(sight.screen).decode()}"
            if sight.screen
            else "",
            "console": sight.console[-CONSOLE_CHARACTERS:],
        }
        for what, text in parts.items():
            if text and len(text.encode()) <= left:
                left -= len(text.encode())
                shown.setdefault(name, {})[what] = text
    return shown


def _page() -> Environment:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = lambda value: "-" if value is None else format_duration(float(value))
    environment.filters["size"] = lambda value: format_size(float(value))
    environment.filters["written"] = lambda value: json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
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
img { max-width: 100%; } figure { margin: 1rem 0; }
pre { font-size: .8em; white-space: pre-wrap; word-break: break-all; }
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
{% if body.run.approval %}<tr><th>Approved by</th><td>{% for one in body.run.approval.by %}
{{ one.actor }} at {{ one.at }}<br>
{% else %}nobody of {{ body.run.approval.people }}{% endfor %}</td></tr>{% endif %}
<tr><th>From, to</th><td>{{ body.plan.source_site }} → {{ body.plan.target_site }}</td></tr>
<tr><th>Began, ended</th><td>{{ body.run.started_at }}, {{ body.run.ended_at }}</td></tr>
{% if body.run.error %}<tr><th>Error</th><td class="failed">{{ body.run.error.message }}</td></tr>{% endif %}
</table>
<h2>Machines</h2>
{% if body.objectives %}<p>Wanted: RPO {{ body.objectives.rpo_s | duration }}, RTO \
{{ body.objectives.rto_s | duration }}.</p>{% endif %}
<table>
<tr><th>Machine</th><th>State</th><th>RPO</th><th>RTO</th><th>Checkpoint</th><th>Address</th><th>Probes</th></tr>
{% for machine in body.run.machines %}
<tr><td>{{ machine.name }}</td><td class="{{ machine.state }}">{{ machine.state }}</td>
{% for name in ("rpo", "rto") %}{% set met = (body.objectives.machines[machine.name][name] | default(none)) \
if body.objectives else none %}
<td{% if met is not none %} class="{{ "green" if met else "red" }}"{% endif %}>\
{{ machine[name + "_s"] | duration }}</td>{% endfor %}

<td><code>{{ machine.checkpoint_id or "-" }}</code></td><td>{{ machine.address or "-" }}</td>
<td>{% for probe in machine.probes %}
<div class="{{ "green" if probe.green else "red" }}">{{ probe.type }} {{ probe.target }}: \
{{ "green" if probe.green else "red" }} after {{ probe.seconds | duration }} {{ probe.detail }}</div>
{% endfor %}</td></tr>
{% endfor %}
</table>
{% set facts = body.run.facts | default({}) %}
{% if facts.left_out %}<p>Left out, and gone on with as before: {{ facts.left_out | join(", ") }}.</p>{% endif %}
{% if facts.isolation %}
<h2>Isolation</h2>
<p class="{{ "green" if facts.isolation.proven else "red" }}">\
{{ "Proven" if facts.isolation.proven else "Not proven" }} {{ facts.isolation.reason | default("") }}</p>
{% if facts.isolation.canaries %}
<table>
<tr><th>Network</th><th>From</th><th>To</th><th>Has to be</th><th>Was</th></tr>
{% for canary in facts.isolation.canaries %}
<tr><td>{{ canary.network }}</td><td>{{ canary.source }}</td><td>{{ canary.target }}</td>
<td>{{ "reached (control)" if canary.control else "closed" }}</td>
<td class="{{ "green" if canary.reached == canary.control else "red" }}">\
{{ "reached" if canary.reached else "closed" }} \
{{ canary.detail }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if facts.isolation.packets %}
<table>
<tr><th>Network</th><th>Packets that got outside</th><th>Stopped</th><th>Admitted</th></tr>
{% for count in facts.isolation.packets %}
<tr><td>{{ count.network }}</td><td class="{{ "red" if count.outside else "green" }}">{{ count.outside }}</td>
<td>{{ count.stopped }}</td><td>{{ count.admitted }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% endif %}
{% if facts.sights %}
<h2>What machines showed</h2>
<table>
<tr><th>Machine</th><th>Taken</th><th>Screen (SHA-256)</th><th>Console (SHA-256)</th></tr>
{% for name, seen in facts.sights.items() %}
<tr><td>{{ name }}</td><td>{{ seen.taken_at }}</td><td><code>{{ seen.screen_sha256 or seen.note or "-" }}</code></td>
<td><code>{{ seen.console_sha256 }}</code></td></tr>
{% endfor %}
</table>
{% for name, seen in shown.items() %}
<figure>
<figcaption>{{ name }}</figcaption>
{% if seen.picture %}<img alt="screen of {{ name }}" src="{{ seen.picture }}">{% endif %}

{% if seen.console %}<details><summary>end of its console</summary><pre>{{ seen.console }}</pre></details>{% endif %}

</figure>
{% endfor %}
{% if shown | length < facts.sights | length %}<p>The rest lies beside this page.</p>{% endif %}
{% endif %}
{% if facts.during %}
<p>Replication meanwhile: {{ facts.during.cycles_published }} cycles published, {{ facts.during.cycles_failed }} failed,
{{ facts.during.resent_bytes | size }} sent again.</p>
{% endif %}
<h2>Steps</h2>
<table>
<tr><th>Step</th><th>Machine</th><th>State</th><th>Began</th><th>Took</th><th>Detail</th></tr>
{% for step in body.run.steps %}
<tr><td>{{ step.name }}</td><td>{{ step.machine or "" }}</td><td class="{{ step.state }}">{{ step.state }}</td>
<td>{{ step.started_at or "" }}</td><td>{{ step.seconds | duration }}</td>
<td>{% if step.attempts | default(1) > 1 %}{{ step.attempts }} attempts. {% endif %}{{ step.detail }}
{% if step.evidence %}<details><summary>what it saw</summary>
<pre>{{ step.evidence | written }}</pre></details>{% endif %}
</td></tr>
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
{% if body.checkpoints %}
<h2>Checkpoints</h2>
<table>
<tr><th>Checkpoint</th><th>Level</th><th>Taken</th><th>Disk</th><th>Digest of its content</th></tr>
{% for point in body.checkpoints %}{% for disk in point.disks %}
<tr><td><code>{{ point.checkpoint_id }}</code></td><td>{{ point.level }}</td><td>{{ point.taken_at }}</td>
<td>{{ disk.disk_key }}, {{ disk.size_bytes | size }}</td><td><code>{{ disk.tree_root }}</code></td></tr>
{% endfor %}{% endfor %}
</table>
{% endif %}
<h2>Seal</h2>
<p>This is report {{ position }} of its control plane; it follows <code>{{ previous }}</code>.
The file <code>{{ body.run.run_id }}.json</code> holds the digest of this page and is signed (Ed25519).
<code>farshore evidence verify {{ body.run.run_id }}.json</code> checks both.</p>
</body>
</html>
"""
)
