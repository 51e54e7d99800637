"""The client against a real TLS server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from doubles.cli_server import TOKEN, Api, make_certificate
from farshore.cli.remote.client import PAUSES_S, Client, problem
from farshore.cli.settings import Endpoint
from farshore.errors import (
    Conflict,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    Permanent,
    Unauthenticated,
    Unavailable,
)


def client_of(api: Api, pauses: list[float] | None = None, token: str | None = TOKEN) -> Client:
    return Client(Endpoint(api.url, token, api.ca, True, "test"), pause=(pauses if pauses is not None else []).append)


def test_reads_carry_the_token_and_leave_out_what_is_none(api: Api):
    api.on("GET", "/machines", {"items": [{"name": "db"}]})
    assert client_of(api).items("/machines", site="alpha", plan=None) == [{"name": "db"}]
    assert api.requests[0].query == {"site": "alpha"}
    assert "idempotency-key" not in api.requests[0].headers


def test_every_write_has_a_key_of_its_own_and_tells_whether_it_changed(api: Api):
    api.on("PUT", "/sites/a", {"name": "a"}, X_Farshore_Changed="true")
    api.on("PUT", "/sites/b", {"name": "b"}, X_Farshore_Changed="false")
    api.on("DELETE", "/sites/b", None, status=204)
    client = client_of(api)
    assert client.put("/sites/a", {}).changed is True
    assert client.put("/sites/b", {}).changed is False
    assert client.delete("/sites/b").body is None
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 3


def test_a_passing_failure_is_tried_again_with_the_same_key(api: Api):
    api.answers["POST", "/plans/p:replicate"] = [
        lambda _: (503, {"code": "try-again", "detail": "later"}),
        lambda _: (429, {"code": "try-again", "detail": "later"}),
        lambda _: (202, {"run": None, "changed": False}),
    ]
    pauses: list[float] = []
    assert client_of(api, pauses).post("/plans/p:replicate").status == 202
    assert pauses == list(PAUSES_S[:2])
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 1


def test_a_failure_that_lasts_ends_as_what_it_is(api: Api):
    api.problem("GET", "/plans", 503, code="starting", detail="not yet", hint="Wait.")
    pauses: list[float] = []
    with pytest.raises(Unavailable) as caught:
        client_of(api, pauses).get("/plans")
    assert (caught.value.code, caught.value.hint) == ("starting", "Wait.")
    assert pauses == list(PAUSES_S)


def test_a_refusal_is_not_tried_again(api: Api):
    api.problem("POST", "/plans/p:drill", 409, code="drill-running", detail="one runs", evidence={"run_id": "run-7"})
    with pytest.raises(Conflict) as caught:
        client_of(api).post("/plans/p:drill")
    assert caught.value.evidence == {"run_id": "run-7"}
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthenticated", Unauthenticated),
        (403, "forbidden", Forbidden),
        (404, "not-found", NotFound),
        (409, "conflict", Conflict),
        (409, "fenced", Fenced),
        (422, "plan-invalid", Invalid),
    ],
)
def test_the_status_chooses_the_class_of_a_problem(status: int, code: str, kind: type[Exception]):
    error = problem(status, {"code": code, "detail": "d", "field": "a.b", "evidence": {"code": "x", "line": 3}}, "u")
    assert type(error) is kind
    assert (error.code, error.field, error.evidence) == (code, "a.b", {"line": 3})


def test_nothing_there_is_told_at_once_with_the_next_step(api: Api):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pauses: list[float] = []
    client = Client(Endpoint(f"https://127.0.0.1:{port}", "t", api.ca, True, "test"), pause=pauses.append)
    with pytest.raises(Unavailable, match="does not answer") as caught:
        client.get("/plans")
    assert "farshore up" in caught.value.hint
    assert caught.value.evidence["reason"] == "Connection refused"
    assert pauses == []


def test_a_server_of_another_ca_gets_no_token(api: Api, tmp_path: Path):
    other, _ = make_certificate(tmp_path)
    client = Client(Endpoint(api.url, "fsh_test_secret", other, True, "test"))
    with pytest.raises(Permanent) as caught:
        client.get("/plans")
    assert caught.value.code == "tls-untrusted"
    assert "--ca" in caught.value.hint
    assert api.requests == []


def test_no_token_is_told_before_anything_is_sent(api: Api):
    with pytest.raises(Unauthenticated, match="no token"):
        client_of(api, token=None).get("/plans")
    assert api.requests == []
    assert client_of(api, token=None).health()["status"] == "ok"


def test_an_answer_that_is_no_json_is_no_control_plane(api: Api):
    api.answers["GET", "/plans"] = lambda _: (200, "<html>")
    with pytest.raises(Permanent) as caught:
        client_of(api).get("/plans")
    assert caught.value.code == "not-a-control-plane"


def test_the_environments_proxies_and_netrc_are_not_asked(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password wrong\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    api.on("GET", "/plans", {"items": []})
    assert client_of(api).items("/plans") == []
