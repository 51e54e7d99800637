"""Enrolment, renewal and the client's errors, against a real TLS server."""

import datetime as dt
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.control_for_nodes import Authority, Control
from farshore.errors import (
    Conflict,
    FarshoreError,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    Permanent,
    Retry,
    Unauthenticated,
    Unavailable,
)
from farshore.model.task import PollRequest, Progress
from farshore.node import enrol
from farshore.node.client import Backoff, ControlClient, call, open_session
from farshore.node.config import NodeConfig
from farshore.node.identity import Catalog, fingerprint, of

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    double = Control(tmp_path / "control").start()
    yield double
    double.stop()


def settings(tmp_path: Path, control: Control, name: str = "alpha-1", site: str = "alpha") -> NodeConfig:
    return NodeConfig(
        name=name,
        site=site,
        control_url=control.url,
        state_dir=tmp_path / name,
        data_listen="127.0.0.1:0",
        platform={"type": "file", "root": str(tmp_path / site)},
    )


def join(config: NodeConfig, control: Control, **options: object) -> bool:
    token = control.token(config.site, config.name)
    return enrol.enrol(config, token, ca_sha256=fingerprint(control.authority.pem), now=NOW, **options)  # type: ignore[arg-type]


def poll(config: NodeConfig, wait_s: float = 0) -> None:
    client = ControlClient(config.control_url, of(config))
    try:
        client.poll(
            PollRequest(node=config.name, incarnation="i", version="0", platform="file", data_port=1, wait_s=wait_s)
        )
    finally:
        client.close()


def test_a_token_becomes_a_certificate_that_polls(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    assert join(config, control)
    identity = of(config)
    assert identity.is_enrolled(NOW)
    assert identity.catalog() == Catalog("cat-1", 1, control.grant_key_pem)
    poll(config)
    assert control.polls[0].node == "alpha-1"


def test_the_key_is_made_here_and_closed_to_others(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    for path in (of(config).key_path, of(config).certificate_path, of(config).catalog_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.state_dir.stat().st_mode) == 0o700


def test_enrolling_again_changes_nothing_and_needs_no_token(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    before = of(config).certificate_path.read_bytes()
    control.stop()
    assert not enrol.enrol(config, "", now=NOW)
    assert of(config).certificate_path.read_bytes() == before


def test_an_expired_certificate_is_replaced_with_the_same_key(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    key = of(config).key_path.read_bytes()
    later = NOW + dt.timedelta(days=31)
    assert not of(config).is_enrolled(later)
    control.certificate_days = 90
    token = control.token("alpha", "alpha-1")
    assert enrol.enrol(config, token, ca_sha256=fingerprint(control.authority.pem), now=later)
    assert of(config).key_path.read_bytes() == key


def test_a_token_is_good_once(tmp_path: Path, control: Control):
    config, other = settings(tmp_path, control), settings(tmp_path / "2", control)
    token = control.token("alpha", "alpha-1")
    pin = fingerprint(control.authority.pem)
    assert enrol.enrol(config, token, ca_sha256=pin, now=NOW)
    with pytest.raises(Unauthenticated) as caught:
        enrol.enrol(other, token, ca_sha256=pin, now=NOW)
    assert caught.value.code == "token-invalid"
    assert token not in str(caught.value)
    assert not of(other).is_enrolled(NOW)


def test_a_token_is_for_one_node(tmp_path: Path, control: Control):
    config = settings(tmp_path, control, site="beta")
    with pytest.raises(Forbidden):
        enrol.enrol(config, control.token("alpha", "alpha-1"), ca_sha256=fingerprint(control.authority.pem), now=NOW)


def test_a_ca_file_is_trusted_without_a_pin(tmp_path: Path, control: Control):
    ca = tmp_path / "ca.pem"
    ca.write_text(control.authority.pem)
    config = settings(tmp_path, control)
    assert enrol.enrol(config, control.token("alpha", "alpha-1"), ca_file=ca, now=NOW)


def test_the_token_is_not_sent_to_whom_the_pin_does_not_name(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    token = control.token("alpha", "alpha-1")
    for pin in (fingerprint(Authority().pem), "sha256:" + "0" * 64):
        with pytest.raises(Forbidden) as caught:
            enrol.enrol(config, token, ca_sha256=pin, now=NOW)
        assert caught.value.code == "control-untrusted"
    foreign = tmp_path / "ca.pem"
    foreign.write_text(Authority().pem)
    with pytest.raises(Forbidden):
        enrol.enrol(config, token, ca_file=foreign, now=NOW)
    assert token in control.tokens


@pytest.mark.parametrize(
    ("token", "pin", "field"),
    [
        ("", "sha256:" + "0" * 64, "token"),
        ("fsh_1_x", "sha256:" + "0" * 64, "token"),
        ("fsn_1_x\n", "sha256:" + "0" * 64, "token"),
        ("fsn_1_x", "sha256:123", "ca_sha256"),
        ("fsn_1_x", None, "ca_sha256"),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, control: Control, token: str, pin: str | None, field: str):
    with pytest.raises(Invalid) as caught:
        enrol.enrol(settings(tmp_path, control), token, ca_sha256=pin, now=NOW)
    assert caught.value.field == field


def test_a_control_plane_that_is_away_leaves_no_certificate(tmp_path: Path, control: Control):
    control.stop()
    config = settings(tmp_path, control)
    with pytest.raises(Unavailable):
        join(config, control)
    assert not of(config).is_enrolled(NOW)


def test_a_certificate_for_somebody_else_is_not_kept(tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch):
    real = control.authority.node
    monkeypatch.setattr(control.authority, "node", lambda site, _node, key, **more: real(site, "mallory", key, **more))
    config = settings(tmp_path, control)
    with pytest.raises(Permanent, match="mallory"):
        join(config, control)
    assert not of(config).is_enrolled(NOW)


def test_a_lower_generation_of_the_same_catalog_is_refused(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    of(config).keep_catalog(Catalog("cat-1", 7, control.grant_key_pem))
    of(config).certificate_path.unlink()
    with pytest.raises(Forbidden) as caught:
        join(config, control)
    assert caught.value.code == "generation-stale"
    assert of(config).catalog().generation == 7


def test_renewal_comes_at_two_thirds_and_is_taken_up_by_the_client(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    identity, client = of(config), ControlClient(config.control_url, of(config))
    before = identity.certificate()
    assert before is not None
    assert not enrol.renew(identity, client, before.not_valid_before_utc + dt.timedelta(days=19))
    assert enrol.renew(identity, client, before.not_valid_before_utc + dt.timedelta(days=21))
    after = identity.certificate()
    assert after is not None
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    os.utime(identity.certificate_path, ns=(1, 1))
    client.poll(PollRequest(node="alpha-1", incarnation="i", version="0", platform="file", data_port=1, wait_s=0))
    client.close()


def test_a_certificate_of_another_ca_is_refused(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    identity = of(config)
    forged = Authority().node("alpha", "alpha-1", identity.make_key().public_key())
    identity.certificate_path.write_text(forged)
    codes = set()
    for _ in range(50):
        # The peer's reason may be lost when it closes before we have read it; then it looks like one that is away.
        with pytest.raises((Unauthenticated, Unavailable)) as caught:
            poll(config)
        codes.add(caught.value.code)
        if "certificate-refused" in codes:
            break
    assert "certificate-refused" in codes


def test_a_certificate_of_another_node_is_refused(tmp_path: Path, control: Control):
    config = settings(tmp_path, control)
    join(config, control)
    identity = of(config)
    identity.certificate_path.write_text(control.authority.node("alpha", "alpha-2", identity.make_key().public_key()))
    with pytest.raises(Forbidden):
        poll(config)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Permanent),
        (401, Unauthenticated),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (422, Invalid),
        (429, Retry),
        (500, Retry),
        (503, Retry),
    ],
)
def test_a_status_becomes_a_duty(tmp_path: Path, control: Control, status: int, kind: type[FarshoreError]):
    config = settings(tmp_path, control)
    join(config, control)
    control.fault = lambda _method, _path: status
    with pytest.raises(kind) as caught:
        poll(config)
    assert type(caught.value) is kind
    assert caught.value.code == "fault"


def test_a_lower_term_is_fenced(tmp_path: Path, control: Control):
    from farshore.model.task import Task

    config = settings(tmp_path, control)
    join(config, control)
    control.put(Task(task_id="tsk-1", kind="inventory", key="k", site="alpha", term=2))
    client = ControlClient(config.control_url, of(config))
    with pytest.raises(Fenced):
        client.progress("tsk-1", 1, Progress())
    client.close()


def serve_once(act: Callable[[socket.socket], None]) -> tuple[str, threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            act(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return f"https://127.0.0.1:{listener.getsockname()[1]}", thread


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["closes", "speaks plain http"])
def test_a_peer_without_tls_is_unavailable(tmp_path: Path, data: bytes):
    ca = tmp_path / "ca.pem"
    ca.write_text(Authority().pem)
    url, thread = serve_once(lambda connection: connection.sendall(data))
    with open_session(ca) as session, pytest.raises(Unavailable):
        call(session, "GET", url)
    thread.join()


def test_pauses_double_up_to_the_cap_and_are_drawn_below_it():
    low, high = Backoff(1, 8, draw=lambda: 0.0), Backoff(1, 8, draw=lambda: 1.0)
    assert [low.next_s() for _ in range(5)] == [0.5, 1, 2, 4, 4]
    assert [high.next_s() for _ in range(5)] == [1, 2, 4, 8, 8]
    high.reset()
    assert high.next_s() == 1
