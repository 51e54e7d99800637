"""Reports show every change, also one byte."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from farshore.errors import Corruption
from farshore.recovery import evidence
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = Ed25519PrivateKey.generate()
BODY: dict[str, Any] = {
    "run": {
        "kind": "drill",
        "plan": "<b>shop</b>",
        "state": "succeeded",
        "run_id": "run-1",
        "actor": "x",
        "started_at": None,
        "ended_at": None,
        "error": None,
        "machines": [
            {
                "name": "db",
                "state": "green",
                "rpo_s": 1.5,
                "rto_s": None,
                "checkpoint_id": "cp",
                "address": None,
                "probes": [{"type": "tcp", "target": "1", "green": True, "seconds": 1.0, "detail": "<i>"}],
            },
        ],
        "steps": [
            {"name": "s", "machine": None, "state": "succeeded", "started_at": None, "seconds": 0.1, "detail": ""}
        ],
        "cycles": [
            {"group_id": "g", "checkpoint_id": "cp", "stats": {"mode": "full", "moved_bytes": 5, "disk_bytes": 9}}
        ],
    },
    "plan": {"revision": 1, "digest": "d", "source_site": "a", "target_site": "b"},
}


def sealed(position: int = 1, previous: str = evidence.ORIGIN) -> dict[str, Any]:
    return evidence.seal(BODY, position=position, previous=previous, key=KEY)


def test_a_report_is_checked_offline() -> None:
    report = json.loads(json.dumps(sealed()))
    evidence.verify(report)
    evidence.verify(report, KEY.public_key())
    with pytest.raises(Corruption) as caught:
        evidence.verify(report, Ed25519PrivateKey.generate().public_key())
    assert caught.value.code == "report-forged"


@settings(max_examples=200)
@given(st.data())
def test_any_changed_character_is_found(data: st.DataObject) -> None:
    report = sealed()
    del report["public_key"]  # it is only a convenience: whoever checks has his own
    text = json.dumps(report)
    index = data.draw(st.integers(0, len(text) - 1))
    changed = text[:index] + data.draw(st.sampled_from('0aZ ]}"')) + text[index + 1 :]
    try:
        other = json.loads(changed)
    except ValueError:
        return
    if other == report:
        return
    with pytest.raises(Corruption):
        evidence.verify(other, KEY.public_key())


def test_a_report_that_was_left_out_is_missed() -> None:
    first = sealed()
    second = sealed(2, first["digest"])
    third = sealed(3, second["digest"])
    evidence.verify_chain([first, second, third], KEY.public_key())
    with pytest.raises(Corruption, match="follow"):
        evidence.verify_chain([first, third])


@pytest.mark.parametrize("wrong", [{}, {"body": 1}, None, [], {"digest": "x", "signature": 3}])
def test_what_is_no_report_is_refused(wrong: Any) -> None:
    with pytest.raises(Corruption):
        evidence.verify(wrong)


def test_a_page_escapes_what_it_shows() -> None:
    page = evidence.html(sealed())
    assert "<b>shop" not in page
    assert "&lt;b&gt;shop" in page
    assert "&lt;i&gt;" in page
    assert "<script" not in page
    assert "5 B" in page


def test_a_failed_run_without_machines_has_a_page_too() -> None:
    body = copy.deepcopy(BODY)
    body["run"].update(machines=[], cycles=[], error={"message": "it <failed>"}, state="failed")
    assert "it &lt;failed&gt;" in evidence.html(evidence.seal(body, position=1, previous=evidence.ORIGIN, key=KEY))
