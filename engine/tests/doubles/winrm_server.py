"""A WinRM service over HTTPS with basic authentication, as far as one command needs it (MS-WSMV): shells and commands.

It parses what it is sent and answers in WS-Management's words; it runs nothing, but looks answers up.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.server
import ipaddress
import ssl
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SOAP = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
SHELL = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"


@dataclass
class WinRmServer:
    """What it admits and answers; ``shells`` are those that were not removed."""

    user: str = "probe"
    password: str = ""
    #: Output and exit status by command line; one that is not here never ends.
    answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    shells: set[str] = field(default_factory=set)
    commands: dict[str, str] = field(default_factory=dict)
    logins: int = 0
    port: int = 0

    def answer(self, body: bytes) -> str:
        """Return the body of the reply to an envelope."""
        root = ET.fromstring(body)  # noqa: S314  our own client's
        action = (root.findtext(f"{{{SOAP}}}Header/{{{ADDRESSING}}}Action") or "").rpartition("/")[2]
        shell_id = root.findtext(f"{{{SOAP}}}Header/{{{WSMAN}}}SelectorSet/{{{WSMAN}}}Selector") or ""
        if action == "Create":
            made = str(uuid.uuid4()).upper()
            self.shells.add(made)
            return (
                f'<t:ResourceCreated xmlns:t="{TRANSFER}"><a:ReferenceParameters xmlns:a="{ADDRESSING}">'
                f'<w:SelectorSet xmlns:w="{WSMAN}"><w:Selector Name="ShellId">{made}</w:Selector></w:SelectorSet>'
                "</a:ReferenceParameters></t:ResourceCreated>"
                f'<rsp:Shell xmlns:rsp="{SHELL}"><rsp:ShellId>{made}</rsp:ShellId></rsp:Shell>'
            )
        if action == "Command":
            made = str(uuid.uuid4()).upper()
            self.commands[made] = root.findtext(f".//{{{SHELL}}}Command") or ""
            return (
                f'<rsp:CommandResponse xmlns:rsp="{SHELL}"><rsp:CommandId>{made}</rsp:CommandId></rsp:CommandResponse>'
            )
        if action == "Receive":
            stream = root.find(f".//{{{SHELL}}}DesiredStream")
            command_id = (stream.get("CommandId") if stream is not None else None) or ""
            return self._receive(command_id)
        if action == "Delete":
            self.shells.discard(shell_id)
            return ""
        return f'<rsp:SignalResponse xmlns:rsp="{SHELL}"/>'

    def _receive(self, command_id: str) -> str:
        found = self.answers.get(self.commands.get(command_id, ""))
        if found is None:
            threading.Event().wait(0.2)  # as a service that has nothing new to tell
            state = f'<rsp:CommandState CommandId="{command_id}" State="{SHELL}/CommandState/Running"/>'
            return f'<rsp:ReceiveResponse xmlns:rsp="{SHELL}">{state}</rsp:ReceiveResponse>'
        output, status = base64.b64encode(found[0].encode()).decode(), found[1]
        return (
            f'<rsp:ReceiveResponse xmlns:rsp="{SHELL}">'
            f'<rsp:Stream Name="stdout" CommandId="{command_id}">{output}</rsp:Stream>'
            f'<rsp:CommandState CommandId="{command_id}" State="{SHELL}/CommandState/Done">'
            f"<rsp:ExitCode>{status}</rsp:ExitCode></rsp:CommandState></rsp:ReceiveResponse>"
        )


@contextlib.contextmanager
def winrm_server(server: WinRmServer, folder: Path) -> Iterator[WinRmServer]:
    """Let ``server`` listen on a port of its own, with a certificate that nobody has signed."""
    wanted = "Basic " + base64.b64encode(f"{server.user}:{server.password}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != wanted:
                server.logins += self.headers.get("Authorization") is not None
                self._reply(401, b"", {"WWW-Authenticate": 'Basic realm="WSMAN"'})
                return
            asked = ET.fromstring(body).findtext(f"{{{SOAP}}}Header/{{{ADDRESSING}}}MessageID")  # noqa: S314
            head = f'<a:RelatesTo xmlns:a="{ADDRESSING}">{asked}</a:RelatesTo>'
            envelope = (
                f'<s:Envelope xmlns:s="{SOAP}"><s:Header>{head}</s:Header><s:Body>{server.answer(body)}</s:Body>'
                "</s:Envelope>"
            )
            self._reply(200, envelope.encode(), {"Content-Type": "application/soap+xml;charset=UTF-8"})

        def _reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(folder))
    service.socket = context.wrap_socket(service.socket, server_side=True)
    server.port = service.server_address[1]
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        service.shutdown()
        service.server_close()
        thread.join()


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "guest")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "guest.pem"
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(text + made.public_bytes(serialization.Encoding.PEM))
    return path
