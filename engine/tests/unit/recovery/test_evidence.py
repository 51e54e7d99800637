"""Reports show every change, also one byte."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from farshore.errors import Corruption
from farshore.recovery import evidence
from farshore.recovery.pages import MOST_SHOWN_BYTES, Sight
from hypothesis import given
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


def test_any_changed_byte_of_a_file_is_found_with_the_key_and_without() -> None:
    data = evidence.encode(sealed())
    for index, byte in enumerate(data):
        for other in {byte ^ 1, byte ^ 0x20, 0x20} - {byte}:
            changed = data[:index] + bytes([other]) + data[index + 1 :]
            for key in (KEY.public_key(), None):
                with pytest.raises(Corruption):
                    evidence.verify(evidence.read(changed), key)


@given(st.data())
def test_a_file_that_was_cut_or_grew_is_found(data: st.DataObject) -> None:
    whole = evidence.encode(sealed())
    at = data.draw(st.integers(0, len(whole)))
    more = data.draw(st.sampled_from([b"", b" ", b"\n", b"{}", b'"a": 1,']))
    changed = whole[:at] + more + (whole[at:] if more else b"")
    if changed == whole:
        return
    with pytest.raises(Corruption):
        evidence.verify(evidence.read(changed), KEY.public_key())


def test_where_a_file_was_changed_is_said() -> None:
    data = evidence.encode(sealed())
    with pytest.raises(Corruption, match="line 2") as caught:
        evidence.read(data.replace(b"{\n ", b"{\n  ", 1))
    assert caught.value.evidence["byte"] == 3
    with pytest.raises(Corruption, match="its content") as caught:
        evidence.verify(evidence.read(data.replace(b'"green": true', b'"green": false', 1)))
    assert caught.value.code == "report-changed"


def test_the_page_and_the_junit_file_are_covered() -> None:
    report = sealed()
    for name, text in evidence.render(BODY, 1, evidence.ORIGIN).items():
        evidence.verify_rendering(report, name, text.encode())
        for index in range(0, len(text.encode()), 7):
            data = bytearray(text.encode())
            data[index] ^= 1
            with pytest.raises(Corruption) as caught:
                evidence.verify_rendering(report, name, bytes(data))
            assert caught.value.code == "rendering-changed"


def test_a_report_that_was_left_out_is_missed() -> None:
    first = sealed()
    second = sealed(2, first["digest"])
    third = sealed(3, second["digest"])
    evidence.verify_chain([first, second, third], KEY.public_key(), from_origin=True)
    evidence.verify_chain([second, third], KEY.public_key())
    for reports, text in (
        ([first, third], "2 is missing"),
        ([second, third], "those before it are missing"),
        ([first, second, second], "two reports 2"),
        ([first, sealed(2, third["digest"])], "another digest"),
        ([first, second, sealed(7, second["digest"])], "3 to 6 is missing"),
    ):
        with pytest.raises(Corruption, match=text):
            evidence.verify_chain(reports, KEY.public_key(), from_origin=True)


@pytest.mark.parametrize("wrong", [{}, {"body": 1}, None, [], {"digest": "x", "signature": 3}])
def test_what_is_no_report_is_refused(wrong: Any) -> None:
    with pytest.raises(Corruption):
        evidence.verify(wrong)


def test_a_page_escapes_what_it_shows() -> None:
    page = evidence.render(BODY, 1, evidence.ORIGIN)["html"]
    assert "<b>shop" not in page
    assert "&lt;b&gt;shop" in page
    assert "&lt;i&gt;" in page
    assert "<script" not in page
    assert "5 B" in page


def test_a_failed_run_without_machines_has_a_page_too() -> None:
    body = copy.deepcopy(BODY)
    body["run"].update(machines=[], cycles=[], error={"message": "it <failed>"}, state="failed")
    texts = evidence.render(body, 1, evidence.ORIGIN)
    assert "it &lt;failed&gt;" in texts["html"]
    suite = ET.fromstring(texts["junit"])  # noqa: S314 - our own
    assert suite.get("failures") == "1"


def test_the_proof_of_isolation_and_what_machines_showed_are_on_the_page_and_covered_by_the_report() -> None:
    body = copy.deepcopy(BODY)
    canary = {"network": "drill-1", "source": "guest a", "target": "hypervisor", "detail": "<refused>"}
    body["run"]["facts"] = {
        "isolation": {
            "proven": True,
            "canaries": [
                {**canary, "control": False, "reached": False},
                {**canary, "target": "guest b", "control": True, "reached": True},
                {**canary, "target": "gateway", "control": False, "reached": True},
            ],
            "packets": [{"network": "drill-1", "outside": 0, "stopped": 17, "admitted": 230}],
        },
        "sights": {
            name: {"taken_at": "noon", "console_sha256": "c" * 64, "screen_sha256": None} for name in ("db", "x")
        },
    }
    png = b"\x89PNG\r\n\x1a\n" + bytes(50)
    sights = {"db": Sight(png, "login: <script>"), "x": Sight(bytes(MOST_SHOWN_BYTES), "")}
    texts = evidence.render(body, 1, evidence.ORIGIN, sights)
    page = texts["html"]
    assert page.count("reached (control)") == 1
    assert page.count('class="red">reached') == 1
    assert 'class="green">0</td>' in page
    assert "<td>17</td><td>230</td>" in page
    assert "&lt;refused&gt;" in page
    assert f"data:image/png;base64,{base64.b64encode(png).decode()}" in page
    assert "login: &lt;script&gt;" in page
    assert "The rest lies beside this page." in page
    report = evidence.seal(body, position=1, previous=evidence.ORIGIN, key=KEY, renderings=texts)
    evidence.verify_rendering(report, "html", page.encode())
    with pytest.raises(Corruption):
        evidence.verify_rendering(report, "html", page.replace("login", "logon").encode())


def test_a_picture_is_shown_as_what_it_is() -> None:
    body = copy.deepcopy(BODY)
    body["run"]["facts"] = {"sights": {"db": {"taken_at": "noon", "console_sha256": "c" * 64, "screen_sha256": None}}}
    jpeg = b"\xff\xd8\xff\xe0" + bytes(20)
    page = evidence.render(body, 1, evidence.ORIGIN, {"db": Sight(jpeg, "")})["html"]
    assert f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" in page
    assert "<img" not in evidence.render(body, 1, evidence.ORIGIN, {"db": Sight(b"", "no screen")})["html"]


def test_objectives_and_who_approved_are_shown() -> None:
    body = copy.deepcopy(BODY)
    body["run"]["approval"] = {"people": 2, "by": [{"actor": "ada", "at": "noon"}]}
    body["objectives"] = {"rpo_s": 1.0, "rto_s": 60.0, "machines": {"db": {"rpo": False, "rto": None}}}
    texts = evidence.render(body, 1, evidence.ORIGIN)
    assert "ada at noon" in texts["html"]
    assert 'class="red">1.5 s' in texts["html"]
    missed = ET.fromstring(texts["junit"]).find(".//testcase[@name='RPO']/failure")  # noqa: S314 - our own
    assert missed is not None
    assert missed.get("type") == "rpo-missed"
    assert missed.get("message") == "1.5 s, wanted 1.0 s"


def test_junit_has_steps_and_probes_as_cases() -> None:
    body = copy.deepcopy(BODY)
    body["run"]["machines"][0]["probes"].append(
        {"type": "http", "target": "2", "green": False, "seconds": 2.0, "detail": "no\x00answer", "evidence": "\x1b[0m"}
    )
    body["run"]["steps"] += [
        {"name": "power on", "machine": "db", "state": "skipped", "seconds": None, "detail": "not started"},
        {
            "name": "hook",
            "machine": "db",
            "state": "failed",
            "seconds": 1,
            "detail": "",
            "error": {"code": "hook-failed"},
        },
    ]
    suites = ET.fromstring(evidence.render(body, 1, evidence.ORIGIN)["junit"])  # noqa: S314 - our own
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("6", "2", "1")
    assert [suite.get("name") for suite in suites] == ["drill of <b>shop</b>", "db"]
    cases = {case.get("name"): case for case in suites.iter("testcase")}
    failure = cases["probe http 2"].find("failure")
    assert failure is not None
    assert failure.get("message") == "no\N{REPLACEMENT CHARACTER}answer"
    assert cases["hook"].find("failure") is not None
    assert cases["power on"].find("skipped") is not None


def test_what_a_drill_has_proven_is_shown() -> None:
    body = copy.deepcopy(BODY)
    sight = {"taken_at": "noon", "screen_sha256": "abc", "console_sha256": "def", "note": ""}
    body["run"]["facts"] = {
        "isolation": {"proven": False, "reason": "a canary got out", "canaries": []},
        "remaining": ["network x"],
        "sights": {"db": sight},
        "during": {"cycles_published": 2, "cycles_failed": 0, "resent_bytes": 0},
    }
    texts = evidence.render(body, 1, evidence.ORIGIN)
    assert "Not proven a canary got out" in texts["html"]
    assert "<code>abc</code>" in texts["html"]
    suites = ET.fromstring(texts["junit"])  # noqa: S314 - our own
    failed = {case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None}
    assert failed == {"isolation", "nothing is left behind"}
