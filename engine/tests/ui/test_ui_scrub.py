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
