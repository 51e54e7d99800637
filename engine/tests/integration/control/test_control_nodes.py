"""Nodes: enrolment, certificates, polls, terms."""

from __future__ import annotations

import shutil
import threading
from datetime import timedelta
from pathlib import Path

import requests
from doubles.control_process import Control, until
from farshore.model.task import PollReply


def test_a_token_admits_its_node_once(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "once-1", "once", enrol=False)
    token = shared.ok("POST", "/nodes/once-1:token")["token"]
    wrong = node.enrol(token, node="other-1")
    assert (wrong.status_code, wrong.json()["code"]) == (403, "certificate-mismatch")
    assert wrong.json()["evidence"]["claimed"]["node"] == "other-1"
    assert node.enrol(token).ok
    again = node.enrol(token)
    assert (again.status_code, again.json()["code"]) == (401, "token-used")
    assert node.enrol("fsn_abc_def").json()["code"] == "token-invalid"


def test_a_newer_token_voids_the_older(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "void-1", "void", enrol=False)
    old, new = (shared.ok("POST", "/nodes/void-1:token")["token"] for _ in range(2))
    assert node.enrol(old).json()["code"] == "token-expired"
    assert node.enrol(new).ok


def test_a_request_that_is_none_is_refused_by_field(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "csr-1", "csr", enrol=False)
    token = shared.ok("POST", "/nodes/csr-1:token")["token"]
    answer = node.enrol(token, csr_pem="-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "csr-invalid", "csr_pem")


def test_polls_need_the_certificate_of_the_node_that_polls(shared: Control, tmp_path: Path) -> None:
    one = shared.node(tmp_path, "peer-1", "peer")
    two = shared.node(tmp_path, "peer-2", "peer-b")
    answer = one.post("/node/v1/poll", one.poll_body(), certificate=False)
    assert (answer.status_code, answer.json()["code"]) == (401, "certificate-required")
    answer = one.post("/node/v1/poll", one.poll_body(node="peer-2"))
    assert (answer.status_code, answer.json()["code"]) == (403, "certificate-mismatch")
    assert answer.json()["evidence"]["certificate"]["node"] == "peer-1"
    assert two.poll().generation == 1


def test_a_certificate_of_another_authority_is_refused_by_tls(shared: Control, tmp_path: Path) -> None:
    from farshore.control.auth.ca import Authority

    node = shared.node(tmp_path, "forged-1", "forged")
    issued = Authority.create("other").sign_node(node.csr(), "forged", "forged-1")
    (node.folder / "node.pem").write_text(issued.pem)
    try:
        answer = node.post("/node/v1/poll", node.poll_body())
    except (requests.exceptions.SSLError, requests.ConnectionError):
        return
    raise AssertionError(answer.text)


def test_an_expired_certificate_is_told_so(shared: Control, tmp_path: Path, monkeypatch) -> None:
    from farshore.control.auth import ca

    node = shared.node(tmp_path, "late-1", "late")
    monkeypatch.setattr(ca, "NODE_DAYS", -1)
    monkeypatch.setattr(ca, "SKEW", timedelta(days=2))
    issued = shared.home.authority().sign_node(node.csr(), "late", "late-1")
    (node.folder / "node.pem").write_text(issued.pem)
    answer = node.post("/node/v1/poll", node.poll_body())
    assert (answer.status_code, answer.json()["code"]) == (401, "certificate-expired")


def test_a_deleted_node_is_refused_from_then_on(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "gone-1", "gone")
    node.poll()
    shared.ok("DELETE", "/nodes/gone-1")
    answer = node.post("/node/v1/poll", node.poll_body())
    assert (answer.status_code, answer.json()["code"]) == (401, "certificate-revoked")


def test_a_renewed_certificate_replaces_the_old_one_when_it_is_used(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "renew-1", "renew")
    old = tmp_path / "old"
    shutil.copytree(node.folder, old)
    csr_key_backup = (node.folder / "node.key").read_bytes()
    csr = node.csr()
    new_key = (node.folder / "node.key").read_bytes()
    (node.folder / "node.key").write_bytes(csr_key_backup)
    answer = node.post("/node/v1/renew", {"csr_pem": csr})
    assert answer.ok, answer.text
    node.poll()  # the old one still works: the answer might have been lost
    (node.folder / "node.key").write_bytes(new_key)
    (node.folder / "node.pem").write_text(answer.json()["certificate_pem"])
    node.poll()
    shutil.copytree(old, node.folder, dirs_exist_ok=True)
    answer = node.post("/node/v1/poll", node.poll_body())
    assert (answer.status_code, answer.json()["code"]) == (401, "certificate-revoked")


def test_a_node_of_another_platform_is_refused(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "plat-1", "plat")
    answer = node.post("/node/v1/poll", node.poll_body(platform="kvm"))
    assert (answer.status_code, answer.json()["code"]) == (422, "platform-mismatch")


def test_a_node_that_obeys_a_newer_catalogue_fences_this_one(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "fence-1", "fence")
    answer = node.post("/node/v1/poll", node.poll_body(generation=7))
    assert (answer.status_code, answer.json()["code"]) == (409, "generation-fenced")


def test_work_is_given_again_until_it_is_reported_and_with_a_higher_term_to_a_new_incarnation(
    shared: Control, tmp_path: Path
) -> None:
    node = shared.node(tmp_path, "term-1", "term")
    node.poll()
    asked = threading.Thread(target=shared.call, args=("POST", "/sites/term:check"))
    asked.start()

    def check_task():
        return next((task for task in node.poll(1.0).tasks if task.kind == "check"), None)

    first = until(check_task, "the check arrives")
    assert first.term == 1
    second = until(check_task, "the check arrives again")
    assert (second.task_id, second.term) == (first.task_id, 1)
    node.running[first.task_id] = first
    assert all(task.task_id != first.task_id for task in node.poll().tasks)
    node.running.clear()
    node.incarnation = "reborn"
    third = until(check_task, "the check arrives at the new incarnation")
    assert (third.task_id, third.term) == (first.task_id, 2)
    assert node.report(first, result={"findings": []}) == "fenced"
    assert node.report(third, result={"findings": []}) == ""
    assert node.report(third, result={"findings": []}) == ""
    asked.join()


def test_a_check_brings_the_nodes_findings(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "check-1", "check")
    shared.refused(503, "site-offline", "POST", "/sites/check:check")
    finding = {"code": "x", "severity": "warning", "message": "m", "remedy": "r", "subject": "s"}
    node.handlers |= {"check": lambda _: {"findings": [finding]}, "inventory": lambda _: {"platform": "file"}}
    node.start()
    until(lambda: shared.ok("GET", "/sites/check")["state"] == "online", "online")
    assert shared.ok("POST", "/sites/check:check") == {"findings": [finding]}
    until(lambda: shared.ok("GET", "/sites/check")["inventory_at"], "first inventory")
    node.stop()


def test_a_poll_that_waits_brings_the_work_that_comes_after_it(shared: Control, tmp_path: Path) -> None:
    node = shared.node(tmp_path, "wait-1", "wait")
    node.handlers |= {"inventory": lambda _: {"platform": "file"}, "check": lambda _: {"findings": []}}

    def seen() -> str | None:
        found = shared.ok("GET", "/nodes/wait-1")["last_seen"]
        return str(found) if found else None

    def attempt() -> bool:
        node.start()
        until(lambda: shared.ok("GET", "/sites/wait")["inventory_at"], "first inventory")
        node.stop()
        before, replies = seen(), list[PollReply]()
        waiting = threading.Thread(target=lambda: replies.append(node.poll(15.0)))
        waiting.start()
        until(lambda: seen() != before or not waiting.is_alive(), "the poll has looked, and found nothing")
        asked = threading.Thread(target=shared.call, args=("POST", "/sites/wait:check"))
        asked.start()
        waiting.join()
        node.start()
        asked.join()
        node.stop()
        # One that was not told looks no more before it ends.
        return bool(replies[0].tasks)

    # On a machine that is busy enough its time may be over before the work comes.
    assert any(attempt() for _ in range(3))
