"""The server, running, and a way to run the command line against it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from doubles.cli_server import TOKEN, Api, Request, Result, make_certificate
from farshore.cli.main import main


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def api(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    made = Api("", certificate[0])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The head and the body are two writes; without this each answer waits for a delayed acknowledgement.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
            pass

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(text) if text else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            path = parts.path.removeprefix("/api/v1")
            status, reply, *more = made.handle(Request(self.command, path, dict(parse_qsl(parts.query)), body, headers))
            raw = reply.encode() if isinstance(reply, str) else b"" if reply is None else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - names that the base class calls

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up, as after Ctrl-C, is no error of the server."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    made.url = f"https://127.0.0.1:{server.server_address[1]}"
    made.on("GET", "/health", {"status": "ok", "version": "0.1.0", "catalog_id": "cat-1"})
    for name in ("FARSHORE_VALIDATE_CERTS", "REQUESTS_CA_BUNDLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARSHORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARSHORE_URL", made.url)
    monkeypatch.setenv("FARSHORE_TOKEN", TOKEN)
    monkeypatch.setenv("FARSHORE_CA_PATH", str(made.ca))
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``farshore`` in this process, from the arguments to the exit status."""

    def run(*arguments: str) -> Result:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1 if exit_.code else 0
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run
