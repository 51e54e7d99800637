"""A small HTTPS server that speaks the documented JSON."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "fsh_test_secret"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "server.pem", folder / "server.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


@dataclass
class Api:
    """Answers by ``(method, path)``: a value, or a function of the request; lists are given out one after the other."""

    url: str
    ca: Path
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def on(self, method: str, path: str, body: Any, status: int = 200, **headers: str) -> None:
        self.answers[method, path] = lambda _: (status, body, {k.replace("_", "-"): v for k, v in headers.items()})

    def problem(self, method: str, path: str, status: int, **fields: Any) -> None:
        self.answers[method, path] = lambda _: (status, {"type": "about:blank", "status": status} | fields)

    def handle(self, request: Request) -> Answer:
        self.requests.append(request)
        if request.path != "/health" and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {
                "status": 401,
                "code": "unauthenticated",
                "detail": "the token is unknown",
                "hint": "Make one.",
            }
        answer = self.answers.get((request.method, request.path))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None:
            return 404, {"status": 404, "code": "not-found", "detail": f"{request.path} does not exist"}
        found: Answer = answer(request)
        return found

    def sent(self, method: str) -> list[Request]:
        return [request for request in self.requests if request.method == method]


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)
