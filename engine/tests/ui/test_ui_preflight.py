"""What a plan's page says of its readiness."""

from __future__ import annotations

import requests


def page(served, **headers: str) -> str:
    cookies = {"farshore_session": "fsh_view_x"}
    return requests.get(f"{served.url}/plans/shop", cookies=cookies, headers=headers, timeout=20).text


def test_findings_are_shown_with_what_to_do_as_text(served):
    assert "Nothing stands in the way" in page(served)
    finding = {
        "code": "site-offline",
        "severity": "error",
        "subject": "beta",
        "message": "no node of <b>beta</b> answers",
        "remedy": "Start it.",
    }
    served.stand.preflight = {"ready": False, "score": 62, "findings": [finding]}
    text = page(served)
    assert "not ready" in text
    assert "no node of &lt;b&gt;beta&lt;/b&gt; answers" in text
    assert "Start it." in text
    assert "Ready for a recovery" not in page(served, **{"HX-Request": "true"})  # not with each renewal
