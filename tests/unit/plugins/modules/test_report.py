"""The report of a run as files: the bytes as they were signed, written once."""

from __future__ import annotations

import hashlib

import pytest

#: As no encoder of ours would write it.
JSON = b'{\n "position": 3,\n "digest": "abc",\n "body": {"x": 1.50}\n}\n'


@pytest.fixture(autouse=True)
def reports(double):
    texts = {"report": JSON, "report.html": "<p>ü</p>".encode(), "report.xml": b"<testsuites/>"}
    double.state.reports["run-1"] = texts
    return texts


def test_each_form_is_written_as_it_came_and_once(ok, reports, tmp_path):
    for form, name, sent in (
        ("json", "run-1.json", "report"),
        ("html", "run-1.html", "report.html"),
        ("junit", "run-1.xml", "report.xml"),
    ):
        params = {"run_id": "run-1", "dest": str(tmp_path), "format": form}
        assert ok("report", check=True, **params)["changed"]
        assert not (tmp_path / name).exists()
        result = ok("report", **params)
        assert (result["changed"], result["path"]) == (True, str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == reports[sent]
        assert result["sha256"] == hashlib.sha256(reports[sent]).hexdigest()
        for check in (True, False):
            assert not ok("report", check=check, **params)["changed"]
    assert (ok("report", run_id="run-1", dest=str(tmp_path))["position"]) == 3


def test_a_file_that_was_changed_is_put_right(ok, tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(JSON.replace(b"3", b"4"))
    result = ok("report", run_id="run-1", dest=str(path), mode="0640", diff=True)
    assert result["changed"]
    assert result["diff"]["before"]["sha256"] != result["diff"]["after"]["sha256"]
    assert path.read_bytes() == JSON
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_fetched_or_written_is_said(ok, bad, double, tmp_path):
    assert bad("report", run_id="run-9", dest=str(tmp_path))["code"] == "report-unknown"
    assert "no folder" in bad("report", run_id="run-1", dest=str(tmp_path / "none" / "a.json"))["msg"]
    double.state.reports["run-1"]["report"] = b"<html>"
    assert bad("report", run_id="run-1", dest=str(tmp_path))["code"] == "bad-answer"
    assert list(tmp_path.iterdir()) == []
