"""Links between sites: described, shown, refused."""

from __future__ import annotations

from doubles.control_process import Control

DAY = {"days": ["mon"], "from": "08:00", "to": "18:00", "limit": "20 Mbit/s"}


def sites(control: Control, *names: str) -> None:
    for name in names:
        control.ok("PUT", f"/sites/{name}", {"platform": "file"})


def test_a_link_is_described_once_and_shown_with_what_it_allows(shared: Control) -> None:
    sites(shared, "north", "south")
    body = {"data_listen": "target", "bandwidth": {"limit": "200 Mbit/s", "calendar": [DAY]}}
    preview = shared.ok("POST", "/site-links/north/south:preview", body)
    assert (preview["changed"], preview["before"]) == (True, None)
    first = shared.call("PUT", "/site-links/north/south", body)
    assert (first.status_code, first.headers["X-Farshore-Changed"]) == (201, "true")
    again = shared.call("PUT", "/site-links/north/south", body)
    assert (again.status_code, again.headers["X-Farshore-Changed"]) == (200, "false")
    link = shared.ok("GET", "/site-links/north/south")
    assert link["limit_now"] in {25_000_000, 2_500_000}
    assert link["limit_until"] is not None
    assert link["bandwidth"]["calendar"] == [DAY | {"limit": 2_500_000}]
    assert link["shares"] == []
    assert shared.ok("GET", "/site-links")["items"] == [link]
    # What was shown can be sent again.
    shown = {key: link[key] for key in ("data_listen", "bandwidth")}
    assert not shared.ok("POST", "/site-links/north/south:preview", shown)["changed"]
    shared.ok("DELETE", "/site-links/north/south")
    shared.ok("DELETE", "/site-links/north/south")
    shared.refused(404, "site-link-unknown", "GET", "/site-links/north/south")
    actions = [entry["action"] for entry in shared.ok("GET", "/audit")["items"]]
    assert actions.count("put_site_link") == actions.count("delete_site_link") == 1


def test_a_link_needs_two_sites_and_goes_with_one(shared: Control) -> None:
    sites(shared, "east", "west")
    found = shared.refused(422, "site-unknown", "PUT", "/site-links/east/wset", {})
    assert (found["field"], "west" in found["hint"]) == ("target_site", True)
    shared.refused(422, "invalid", "PUT", "/site-links/east/east", {})
    shared.ok("PUT", "/site-links/east/west", {})
    shared.ok("DELETE", "/sites/west")
    shared.refused(404, "site-link-unknown", "GET", "/site-links/east/west")


def test_what_is_wrong_is_named(shared: Control) -> None:
    sites(shared, "up", "down")
    wrong = {"bandwidth": {"calendar": [DAY | {"limit": "fast"}]}}
    found = shared.call("PUT", "/site-links/up/down", wrong).json()
    assert found["status"] == 422
    assert "bandwidth" in found["field"]
    assert "200 Mbit/s" in found["detail"]
    viewer = shared.role("viewer")
    assert shared.call("PUT", "/site-links/up/down", {}, token=viewer).status_code == 403
    assert shared.call("GET", "/site-links", token=viewer).ok
