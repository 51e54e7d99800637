"""What pages show of drills: their evidence on a run's page, the schedule on a plan's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from doubles import ui_stand
from farshore.control.ui import figures, pages

ME = SimpleNamespace(name="me", role="viewer", form_key="", may=lambda _least: False)
SIGHTS = {
    "db": {"screen_url": "/api/v1/runs/r/machines/db/screen", "console_url": "/c", "note": ""},
    "web": {"screen_url": None, "console_url": "/d", "note": "<off>"},
}


def page(name: str, **values: Any) -> str:
    return pages.templates().get_template(name).render(me=ME, figures=figures, **values)


def run_page(**changes: Any) -> str:
    run = ui_stand.run("run-1", **changes)
    return page("_run.html", run=run, bars=figures.timeline(run))


def test_a_runs_page_shows_the_proof_and_the_pictures() -> None:
    canary = {"network": "n", "source": "guest a", "target": "hypervisor", "detail": ""}
    isolation = {
        "proven": True,
        "reason": "",
        "canaries": [{**canary, "control": False, "reached": False}, {**canary, "control": True, "reached": True}],
        "packets": [{"network": "n", "outside": 0, "stopped": 3, "admitted": 1}],
    }
    during = {"cycles_published": 2, "cycles_failed": 0, "cycles_skipped": 0, "resent_bytes": 0}
    shown = run_page(facts={"isolation": isolation, "sights": SIGHTS, "during": during})
    assert "Isolated: 1 of 1 canaries stayed inside, 1 of 1 controls were reached, 0 packets outside" in shown
    assert 'href="/api/v1/runs/r/machines/db/screen"' in shown
    assert shown.count(">Screen</a>") == 1
    assert "&lt;off&gt;" in shown
    assert "2 cycles published, 0 failed, 0 skipped" in shown


def test_a_run_of_an_older_version_has_a_page() -> None:
    assert "Evidence" not in run_page(facts={}).replace("Evidence (JSON)", "")
    assert "0 skipped" in run_page(
        facts={"sights": SIGHTS, "during": {"cycles_published": 1, "cycles_failed": 0, "resent_bytes": 0}}
    )
