"""A node that speaks /node/v1 over real mutual TLS and does what a table says instead of touching disks."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from farshore.errors import FarshoreError
from farshore.model.task import PollReply, Task

Handler = Callable[[Task], dict[str, Any]]


class ScriptedNode:
    """One node of one site. ``handlers`` maps a task's kind to what is answered; an error of ours is reported."""

    def __init__(self, folder: Path, url: str, ca_path: Path, *, name: str, site: str, platform: str = "file") -> None:
        self.url, self.ca_path, self.name, self.site, self.platform = url, ca_path, name, site, platform
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.incarnation = secrets.token_hex(4)
        self.generation = 0
        self.standing = ""
        #: What it says that it has for guests and hooks.
        self.kit: dict[str, Any] | None = None
        #: Every control plane gives its sites the bundle, whenever it likes.
        self.handlers: dict[str, Handler] = {"bundle-put": lambda task: {"keys": [task.params["key"]]}}
        self.seen: list[Task] = []
        self.running: dict[str, Task] = {}
        self.cancelled: set[str] = set()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def certificate(self) -> tuple[str, str]:
        return str(self.folder / "node.pem"), str(self.folder / "node.key")

    def post(self, path: str, body: Any, *, certificate: bool = True, timeout_s: float = 60.0) -> requests.Response:
        return requests.post(
            self.url + path,
            json=body,
            cert=self.certificate if certificate else None,
            verify=str(self.ca_path),
            timeout=timeout_s,
        )

    def csr(self) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        (self.folder / "node.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever I like")])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def enrol(self, token: str, **changes: Any) -> requests.Response:
        body = {"token": token, "csr_pem": self.csr(), "node": self.name, "site": self.site, **changes}
        answer = self.post("/node/v1/enrol", body, certificate=False)
        if answer.ok:
            (self.folder / "node.pem").write_text(answer.json()["certificate_pem"])
        return answer

    def poll_body(self, wait_s: float = 0.0, **changes: Any) -> dict[str, Any]:
        return {
            "node": self.name,
            "incarnation": self.incarnation,
            "version": "test",
            "platform": self.platform,
            "data_port": 9101,
            "running": sorted(self.running),
            "generation": self.generation,
            "standing": self.standing,
            "wait_s": wait_s,
            "kit": self.kit,
            **changes,
        }

    def poll(self, wait_s: float = 0.0, **changes: Any) -> PollReply:
        answer = self.post("/node/v1/poll", self.poll_body(wait_s, **changes))
        answer.raise_for_status()
        reply = PollReply.model_validate(answer.json())
        if reply != PollReply():
            self.standing = reply.standing
        return reply

    def report(self, task: Task, state: str = "succeeded", **body: Any) -> str:
        """Tell a task's end; return why that is not wanted, nothing where it is."""
        ended = {"task_id": task.task_id, "state": state, "term": task.term, **body}
        answer = self.post("/node/v1/reports", {"reports": [ended]})
        answer.raise_for_status()
        self.running.pop(task.task_id, None)
        return "".join(refusal["code"] for refusal in answer.json()["refused"])

    def execute(self, task: Task) -> dict[str, Any]:
        """Return the report of a task."""
        handler = self.handlers.get(task.kind)
        if handler is None:
            raise AssertionError(f"no script for {task.kind}")
        try:
            return {"state": "succeeded", "result": handler(task)}
        except FarshoreError as error:
            return {"state": "failed", "error": error.to_dict()}

    def start(self) -> ScriptedNode:
        """Work in the background until :meth:`stop`; each task in a thread of its own."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def ask_to_stop(self) -> None:
        self._stop.set()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
            self._thread = None

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                reply = self.poll(1.0)
            except requests.RequestException as error:
                self.failures.append(str(error))
                self._stop.wait(0.2)
                continue
            self.cancelled.update(reply.cancel)
            for task in reply.tasks:
                with self._lock:
                    if task.task_id in self.running:
                        continue
                    self.running[task.task_id] = task
                    self.seen.append(task)
                threading.Thread(target=self._run, args=(task,), daemon=True).start()

    def _run(self, task: Task) -> None:
        report = self.execute(task)
        while not self._stop.is_set():
            try:
                self.report(task, **report)
            except requests.RequestException as error:
                self.failures.append(str(error))
            else:
                return
            self._stop.wait(0.2)  # the control plane is away: the report waits

    def kinds(self) -> list[str]:
        return [task.kind for task in self.seen]
