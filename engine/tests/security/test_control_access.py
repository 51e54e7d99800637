"""Every route with every role, from the OpenAPI document; credentials that are wrong; nothing secret is kept."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.control_process import Control
from farshore.control.auth import tokens
from farshore.control.auth.access import API_ROLES, NODE_ROLES
from farshore.control.store import Store
from farshore.control.store.records import Token
from sqlalchemy import select

#: Written down a second time, so that a change of the table is a change of this test too.
SENSITIVE = {
    ("POST", "/api/v1/plans/{name}:failover"): "recovery-admin",
    ("DELETE", "/api/v1/plans/{name}"): "recovery-admin",
    ("DELETE", "/api/v1/checkpoints/{checkpoint_id}"): "recovery-admin",
    ("POST", "/api/v1/nodes/{name}:token"): "admin",
    ("PUT", "/api/v1/nodes/{name}"): "admin",
    ("DELETE", "/api/v1/nodes/{name}"): "admin",
    ("PUT", "/api/v1/sites/{name}"): "admin",
    ("DELETE", "/api/v1/sites/{name}"): "admin",
    ("GET", "/api/v1/tokens"): "admin",
    ("POST", "/api/v1/tokens"): "admin",
    ("DELETE", "/api/v1/tokens/{token_id}"): "admin",
}
CALLERS = (None, *tokens.ROLES)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    plane = Control(tmp_path_factory.mktemp("access") / "home").start()
    yield plane
    assert plane.stop() == 0
    assert "Traceback" not in plane.log()


@pytest.fixture(scope="module")
def by_role(control: Control) -> dict[str, str]:
    return {role: control.role(role) for role in tokens.ROLES}


@pytest.fixture(scope="module")
def operations(control: Control) -> list[tuple[str, str, dict[str, Any]]]:
    document = control.ok("GET", "/openapi.json")
    assert document["openapi"].startswith("3.1")
    return [
        (method.upper(), path, operation)
        for path, found in document["paths"].items()
        for method, operation in found.items()
    ]


def test_the_table_and_the_routes_are_the_same(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    routes = {(method, path) for method, path, _ in operations if path.startswith("/api/v1")}
    assert routes == set(API_ROLES)
    assert set(API_ROLES.values()) <= {"anonymous", *tokens.ROLES}
    assert {key for key, role in API_ROLES.items() if role == "anonymous"} == {("GET", "/api/v1/health")}
    for key, role in SENSITIVE.items():
        assert API_ROLES[key] == role
    assert {key[1] for key, role in NODE_ROLES.items() if role != "node"} <= {"/node/v1/enrol", "/node/v1/ca"}
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names), names


def test_every_route_lets_in_whom_the_table_names_and_nobody_else(
    control: Control, by_role: dict[str, str], operations: list[tuple[str, str, dict[str, Any]]]
) -> None:
    for method, path, _ in operations:
        least = API_ROLES[method, path]
        for role in CALLERS:
            url = control.home.url + re.sub(r"\{[a-z_]+\}", "nothing-of-that-name", path)
            token = by_role[role] if role else ""
            answer = control.call(method, url, {}, token=token, stream=path.endswith("/events"))
            code = None if answer.ok or path.endswith("/events") else answer.json()["code"]
            answer.close()
            case = f"{method} {path} as {role}: {answer.status_code} {code}"
            if least == "anonymous":
                assert answer.status_code == 200, case
            elif role is None:
                assert answer.status_code == 401, case
            elif tokens.covers(role, least):
                assert answer.status_code not in {401, 403}, case
                assert answer.status_code < 500, case
            else:
                assert (answer.status_code, code) == (403, "role-too-small"), case


def test_wrong_expired_and_revoked_tokens_are_told_apart(control: Control) -> None:
    control.refused(401, "token-missing", "GET", "/plans", token="")
    control.refused(401, "token-invalid", "GET", "/plans", token="nonsense")
    control.refused(401, "token-invalid", "GET", "/plans", token=control.token[:-1] + "x")
    control.refused(401, "token-invalid", "GET", "/plans", token="fsh_unknown_" + "0" * 64)
    brief = control.ok("POST", "/tokens", {"name": "brief", "role": "viewer", "ttl_s": 1})
    deadline = time.monotonic() + 20
    while control.call("GET", "/plans", token=brief["token"]).ok and time.monotonic() < deadline:
        time.sleep(0.1)
    problem = control.refused(401, "token-expired", "GET", "/plans", token=brief["token"])
    assert problem["hint"]
    gone = control.ok("POST", "/tokens", {"name": "gone", "role": "viewer"})
    assert control.call("DELETE", f"/tokens/{gone['token_id']}").status_code == 204
    control.refused(401, "token-revoked", "GET", "/plans", token=gone["token"])
    basic = control.call("GET", "/plans", token="", headers={"Authorization": "Basic abc"})
    assert basic.status_code == 401


def test_the_last_admin_cannot_lock_everybody_out(tmp_path: Path) -> None:
    plane = Control(tmp_path / "home").start()
    try:
        only = plane.ok("GET", "/tokens")["items"][0]["token_id"]
        plane.refused(409, "last-admin", "DELETE", f"/tokens/{only}")
    finally:
        assert plane.stop() == 0


def test_a_cookie_reads_and_changes_only_with_our_pages_header(control: Control, by_role: dict[str, str]) -> None:
    cookies = {"farshore_session": by_role["admin"]}
    assert control.call("GET", "/plans", token="", cookies=cookies).ok
    control.refused(403, "csrf", "PUT", "/sites/csrf", {"platform": "file"}, token="", cookies=cookies)
    headers = {"X-Farshore-UI": "1"}
    assert control.call("PUT", "/sites/csrf", {"platform": "file"}, token="", cookies=cookies, headers=headers).ok


def test_a_failover_is_cancelled_by_those_who_may_order_one(control: Control, by_role: dict[str, str]) -> None:
    from farshore.control.store.records import Plan, Run

    store = Store(control.home.database)
    with store.write() as tx:
        tx.add(
            Plan(
                name="held",
                revision=1,
                source="",
                definition={
                    "name": "held",
                    "source_site": "a",
                    "target_site": "b",
                    "machines": [{"name": "m"}],
                },
                active_site="a",
                created_at=0.0,
                changed_at=0.0,
            )
        )
        tx.add(
            Run(
                run_id="run-held",
                kind="failover",
                plan="held",
                plan_revision=1,
                actor="x",
                params={"mode": "planned"},
                created_at=0.0,
                facts={},
            )
        )
    store.close()
    control.refused(403, "role-too-small", "POST", "/runs/run-held:cancel", token=by_role["operator"])
    assert control.call("POST", "/runs/run-held:cancel", token=by_role["recovery-admin"]).ok


NASTY = (
    "../../etc/passwd",
    "..%2f..%2fetc",
    "%00",
    "a'b\"c",
    "'; DROP TABLE plan; --",
    "{{7*7}}",
    "$(id)",
    "`id`",
    "<script>alert(1)</script>",
    "a\nb",
    "ü" * 300,
    "!!python/object/apply:os.system [id]",
    "\u202egnp",
    "-rf",
)


def _value(noise: random.Random, schema: dict[str, Any], parts: dict[str, Any], depth: int = 0) -> Any:
    """Return something that fits ``schema``, or that does not."""
    if noise.random() < 0.25 or depth > 3:
        return noise.choice([None, True, -1, 2**70, 1e308, "", *NASTY, [], {}, [[]], {"a": None}])
    if "$ref" in schema:
        return _value(noise, parts[schema["$ref"].rpartition("/")[2]], parts, depth)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _value(noise, noise.choice(schema[key]), parts, depth)
    if "enum" in schema:
        return noise.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return {
            name: _value(noise, found, parts, depth + 1)
            for name, found in schema.get("properties", {}).items()
            if noise.random() < 0.9
        } or {"machines": [{"name": noise.choice(NASTY)}], "name": "x"}
    if kind == "array":
        return [_value(noise, schema.get("items", {}), parts, depth + 1) for _ in range(noise.randrange(3))]
    if kind in {"integer", "number"}:
        return noise.choice([0, 1, 5, 900, 3.5])
    if kind == "boolean":
        return noise.random() < 0.5
    return noise.choice(["alpha", "15m", "latest", *NASTY])


def test_no_input_makes_an_error_of_our_own(
    control: Control, operations: list[tuple[str, str, dict[str, Any]]]
) -> None:
    noise = random.Random(20260101)
    parts = control.ok("GET", "/openapi.json")["components"]["schemas"]
    for method, path, operation in operations:
        if path.endswith("/events") or operation["operationId"] == "delete_token":
            continue
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for _ in range(15):
            word = noise.choice(["alpha", "shop", *NASTY])
            quoted = word.replace("%", "%25").replace("/", "%2f").replace("\n", "%0a").replace("?", "%3f")
            url = control.home.url + re.sub(r"\{[a-z_]+\}", lambda _, quoted=quoted: quoted, path)
            body = _value(noise, content.get("schema", {}), parts) if content else None
            answer = control.call(method, url, body)
            assert answer.status_code < 500 or answer.json()["code"].startswith("site-"), f"{method} {url} {body}"
            if not answer.ok:
                assert answer.headers["content-type"].startswith("application/problem+json"), f"{method} {url}"


def test_bodies_that_are_too_large_or_no_json_are_refused(control: Control) -> None:
    import requests

    headers = {"Authorization": f"Bearer {control.token}", "Content-Type": "application/json"}
    url = f"{control.home.url}/api/v1/tokens"
    for body, status in ((b"{", 422), (b"\xff\xfe", 422), (b"[" * 100_000, 400), (b" " * (17 << 20), 413)):
        try:
            answer = requests.post(url, data=body, headers=headers, verify=str(control.home.ca), timeout=60)
        except requests.ConnectionError:
            assert status == 413  # the server hung up on the sender
            continue
        assert answer.status_code == status, body[:10]


def test_no_secret_is_stored_or_logged(control: Control, by_role: dict[str, str]) -> None:
    control.ok("PUT", "/sites/canary", {"platform": "file"})
    node = {"site": "canary", "roles": ["replication"], "data_address": "127.0.0.1:9101"}
    control.ok("PUT", "/nodes/canary-1", node)
    enrol = control.ok("POST", "/nodes/canary-1:token", headers={"Idempotency-Key": "canary"})["token"]
    control.refused(409, "secret-shown-once", "POST", "/nodes/canary-1:token", headers={"Idempotency-Key": "canary"})
    secrets = [text.rpartition("_")[2].encode() for text in (control.token, enrol, *by_role.values())]
    for path in control.home.path.rglob("*"):
        if path.is_file() and path != control.home.env:
            found = path.read_bytes()
            assert not any(secret in found for secret in secrets), path
    for path in control.home.secrets.glob("*.key"):
        assert path.stat().st_mode & 0o077 == 0
    assert control.home.env.stat().st_mode & 0o077 == 0
    store = Store(control.home.database)
    with store.read() as session:
        assert all(len(row.digest) == 64 for row in session.scalars(select(Token)))
    store.close()
