"""What a plan's page shows of its checkpoints' integrity, and the scrub from there."""

from __future__ import annotations

import requests
from farshore.control.ui import session

ADMIN, VIEWER = "fsh_adm_x", "fsh_view_x"


def page(served, token: str) -> str:
    cookies = {"farshore_session": token}
    return requests.get(f"{served.url}/plans/shop", cookies=cookies, timeout=20).text


def test_a_checkpoint_is_scrubbed_from_its_row(served):
    name = served.stand.checkpoints[0]["checkpoint_id"]
    assert f"/checkpoints/{name}/scrub" in page(served, ADMIN)
    answer = requests.post(
        f"{served.url}/checkpoints/{name}/scrub",
        {"key": session.form_key(ADMIN)},
        cookies={"farshore_session": ADMIN},
        allow_redirects=False,
        timeout=20,
    )
    assert answer.status_code == 303
    assert served.stand.posts[0][0] == f"/api/v1/checkpoints/{name}:scrub"
    refused = requests.post(
        f"{served.url}/checkpoints/{name}/scrub", {"key": "x"}, cookies={"farshore_session": ADMIN}, timeout=20
    )
    assert refused.status_code == 403


def test_who_may_only_look_sees_what_is_suspect_and_no_button(served):
    first = served.stand.checkpoints[0]
    first["integrity"] = "suspect"
    first["addenda"] = [{"reason": "<b>disk db/vda at offset 4096</b>"}]
    text = page(served, VIEWER)
    assert "suspect" in text
    assert "&lt;b&gt;disk db/vda at offset 4096" in text
    assert "/scrub" not in text


def test_signs_of_encryption_and_a_legal_hold_are_shown_with_their_reasons(served):
    first, second = served.stand.checkpoints[:2]
    first["suspicion"] = {"verdict": "tainted", "score": 0, "reasons": [], "tainted_by": "cp-7", "cleared": None}
    second["suspicion"] = {"verdict": "flagged", "score": 97, "reasons": ["<i>90% noise"], "tainted_by": None}
    second["hold"] = {"reason": "case 4711", "by": "ann", "at": None}
    text = page(served, VIEWER)
    assert "follows cp-7" in text
    assert "&lt;i&gt;90% noise" in text
    assert 'title="case 4711"' in text
    assert "latest_clean" in page(served, ADMIN)
