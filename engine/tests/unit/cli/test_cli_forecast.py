"""What a preview says of guests, for people."""

from __future__ import annotations

from farshore.cli.remote import forecast


def test_a_guest_shows_what_the_last_drill_found_the_worst_first_or_that_there_was_none() -> None:
    dirty = {"code": "ntfs-dirty", "severity": "warning", "message": "not closed"}
    missing = {"code": "driver-disk-missing", "severity": "error", "message": "no driver"}
    seen = {"run": "run-1", "at": None, "system": "", "findings": [dirty, missing], "changes": [{"what": "renamed"}]}
    clean = {**seen, "findings": [], "changes": []}
    rows = dict(forecast.rows({"guests": {"web": seen, "db": None, "app": clean}}))
    assert rows["guest web"].startswith("error: no driver [driver-disk-missing]; warning: not closed [ntfs-dirty]")
    assert "changed: renamed" in rows["guest web"]
    assert "run-1" in rows["guest web"]
    assert rows["guest db"].startswith("never drilled")
    assert rows["guest app"].startswith("nothing is wrong")
