"""A small control plane for the node's tests: speaks ``/node/v1`` over real mutual TLS, keeps everything in memory.

It follows the rules that the real one follows (delivery, terms, incarnations) in the fewest lines, and can misbehave on
demand. It has no scheduler: a test puts tasks and reads reports.
"""

from __future__ import annotations

import datetime as dt
import http.server
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from doubles.ports import free_port
from farshore.model.task import EndedTask, PollRequest, ReportRequest, Task, TaskReport

PEM = serialization.Encoding.PEM


def pem_of(key: Any) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Authority:
    """A CA that signs servers and nodes."""

    def __init__(self, name: str = "test CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), [], days=3650, ca=True)
        self.pem = self.certificate.public_bytes(PEM).decode()

    def _sign(
        self,
        subject: x509.Name,
        key: Any,
        names: list[x509.GeneralName],
        *,
        days: float,
        ca: bool = False,
        age_days: float = 0.01,
    ):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=age_days))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, directory: Path) -> ssl.SSLContext:
        """Return a TLS 1.3 context of a server on 127.0.0.1 that asks for, but does not need, a client certificate."""
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = self._sign(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "control")]), key.public_key(), names, days=30
        )
        path = directory / "server.pem"
        path.write_bytes(certificate.public_bytes(PEM) + pem_of(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(path)
        context.load_verify_locations(cadata=self.pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def node(self, site: str, node: str, public_key: Any, *, days: float = 30, age_days: float = 0.01) -> str:
        """Return a certificate of a node as PEM."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
        uri = x509.UniformResourceIdentifier(f"spiffe://farshore/site/{site}/node/{node}")
        return self._sign(subject, public_key, [uri], days=days, age_days=age_days).public_bytes(PEM).decode()


@dataclass
class Held:
    """A task as the control plane sees it."""

    task: Task
    site: str
    node: str = ""
    incarnation: str = ""
    reports: list[TaskReport] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return bool(self.reports)


class Control:
    """The double. ``start`` and ``stop`` may be called again and again; the port stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.grant_key = Ed25519PrivateKey.generate()
        self.generation = 1
        self.tokens: dict[str, tuple[str, str]] = {}
        self.revoked: set[str] = set()
        self.certificate_days = 30.0
        self.certificate_age_days = 0.01
        self.tasks: dict[str, Held] = {}
        self.polls: list[PollRequest] = []
        self.cancelled: set[str] = set()
        #: Called with method and path before a request is handled; returns a status to answer instead, 0 to go on, -1
        #: to cut the connection after the request was carried out.
        self.fault: Callable[[str, str], int] = lambda _method, _path: 0
        self.changed = threading.Condition()
        self._context = self.authority.server(directory)
        self.port = free_port()
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def grant_key_pem(self) -> str:
        return self.grant_key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()

    def start(self) -> Control:
        control = self

        class Handler(_Handler):
            owner = control

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Broken connections are what the tests are about."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self.changed:
            self.changed.notify_all()

    @property
    def serving(self) -> bool:
        return self._server is not None

    def context(self) -> ssl.SSLContext:
        return self._context

    # What tests do

    def token(self, site: str, node: str) -> str:
        token = f"fsn_{len(self.tokens):04d}_secret-{node}"
        self.tokens[token] = (site, node)
        return token

    def put(self, task: Task, site: str = "") -> Held:
        """Have a node of ``site`` (default: the task's) do ``task``."""
        with self.changed:
            held = self.tasks[task.task_id] = Held(task, site or task.site)
            self.changed.notify_all()
            return held

    def cancel(self, task_id: str) -> None:
        with self.changed:
            self.cancelled.add(task_id)
            self.changed.notify_all()

    def await_(self, condition: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Wait until ``condition`` is true of what the double knows."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "what was waited for did not come"
            return condition()

    def result(self, held: Held, timeout_s: float = 60) -> TaskReport:
        self.await_(lambda: held.done, timeout_s)
        return held.reports[-1]

    # What nodes ask

    def poll(self, request: PollRequest, site: str) -> dict[str, Any]:
        with self.changed:
            self.polls.append(request)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._work(request, site) or not self.serving, min(request.wait_s, 5))
            tasks = [held for held in self.tasks.values() if self._due(held, request, site)]
            for held in tasks:
                if held.node and held.incarnation != request.incarnation:
                    held.task = held.task.model_copy(update={"term": held.task.term + 1})
                held.node, held.incarnation = request.node, request.incarnation
            for held in self.tasks.values():
                if held.task.task_id in request.running:
                    held.node, held.incarnation = request.node, request.incarnation
            return {
                "tasks": [held.task.model_dump(mode="json") for held in tasks],
                "cancel": sorted(self.cancelled & set(request.running)),
                "generation": self.generation,
                "grant_key": self.grant_key_pem,
            }

    def _work(self, request: PollRequest, site: str) -> bool:
        return any(self._due(held, request, site) for held in self.tasks.values()) or bool(
            self.cancelled & set(request.running)
        )

    def _due(self, held: Held, request: PollRequest, site: str) -> bool:
        mine = held.site == site and held.node in {"", request.node} and held.task.task_id not in request.running
        return not held.done and mine and held.task.task_id not in self.cancelled


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Control
    peer: tuple[str, str] | None = None

    def setup(self) -> None:
        self.request.settimeout(30)
        self.request = self.owner.context().wrap_socket(self.request, server_side=True)
        der = self.request.getpeercert(binary_form=True)
        if der:
            certificate = x509.load_der_x509_certificate(der)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
            _, _, _, _, site, _, node = uri.split("/")
            self.peer = (site, node)
        super().setup()

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _problem(self, status: int, code: str) -> None:
        self._answer(status, {"status": status, "code": code, "title": code, "detail": f"the double says {code}"})

    def do_GET(self) -> None:
        if self.path == "/node/v1/ca":
            self._answer(200, {"ca_pem": self.owner.authority.pem})
        else:
            self._problem(404, "not-found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.owner.fault("POST", self.path)
        if fault > 0:
            self._problem(fault, "fault")
            return
        path = self.path.removeprefix("/node/v1/")
        if path == "enrol":
            status, answer = self._enrol(body)
        elif self.peer is None:
            status, answer = 401, "certificate-required"
        elif self.peer[1] in self.owner.revoked:
            status, answer = 401, "certificate-revoked"
        else:
            status, answer = self._node(path, body, self.peer)
        if fault < 0:
            self.close_connection = True
            self.request.shutdown(socket.SHUT_RDWR)
        elif status >= 400:
            self._problem(status, str(answer))
        else:
            self._answer(status, answer)

    def _certificate(self, csr_pem: str, site: str, node: str) -> dict[str, Any]:
        owner = self.owner
        key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
        days, age = owner.certificate_days, owner.certificate_age_days
        return {
            "certificate_pem": owner.authority.node(site, node, key, days=days, age_days=age),
            "ca_pem": owner.authority.pem,
            "grant_key_pem": owner.grant_key_pem,
            "catalog_id": "cat-1",
            "generation": owner.generation,
        }

    def _enrol(self, body: dict[str, Any]) -> tuple[int, Any]:
        known = self.owner.tokens.pop(body["token"], None)
        if known is None:
            return 401, "token-invalid"
        if known != (body["site"], body["node"]):
            return 403, "certificate-mismatch"
        return 200, self._certificate(body["csr_pem"], *known)

    def _node(self, path: str, body: dict[str, Any], peer: tuple[str, str]) -> tuple[int, Any]:
        owner = self.owner
        if path == "poll":
            request = PollRequest.model_validate(body)
            return (200, owner.poll(request, peer[0])) if request.node == peer[1] else (403, "certificate-mismatch")
        if path == "renew":
            return 200, self._certificate(body["csr_pem"], *peer)
        if path == "reports":
            ended = ReportRequest.model_validate(body)
            refused = [refusal for one in ended.reports if (refusal := self._ended(one))]
            return 200, {"generation": owner.generation, "tasks": [], "refused": refused}
        _, task_id, _verb = path.split("/")
        with owner.changed:
            held = owner.tasks.get(task_id)
            if held is None:
                return 404, "not-found"
            if body["term"] < held.task.term:
                return 409, "fenced"
            held.progress.append(body["progress"])
            owner.changed.notify_all()
        return 204, None

    def _ended(self, ended: EndedTask) -> dict[str, str] | None:
        owner = self.owner
        with owner.changed:
            held = owner.tasks.get(ended.task_id)
            code = "not-found" if held is None else "fenced" if ended.term < held.task.term else ""
            if held is None or code:
                return {"task_id": ended.task_id, "code": code, "message": f"the double says {code}"}
            held.reports.append(TaskReport.model_validate(ended.model_dump()))
            owner.changed.notify_all()
        return None
