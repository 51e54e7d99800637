"""The control plane's process: two TLS listeners, the scheduler and the orchestrator on one home directory."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from farshore import durable
from farshore.control import home as homes
from farshore.control.app import create_apps
from farshore.control.auth.identity import PEER
from farshore.control.context import Context, open_context
from farshore.control.home import Home
from farshore.errors import Conflict, FarshoreError, Unavailable

log = logging.getLogger("farshore.control")

#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME. An expired certificate gets past TLS, so that the application can answer with a
#: clear 401 ``certificate-expired``; ``identify_node`` checks the time on every call.
_NO_CHECK_TIME: Final = 0x200000
GRACE_S: Final = 5


class PeerProtocol(H11Protocol):
    """HTTP/1.1 that tells the application which certificate the peer showed."""

    def connection_made(self, transport: Any) -> None:
        """Put the peer's certificate (DER) into the scope of each request of this connection."""
        super().connection_made(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        app = self.app

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            scope[PEER] = der
            await app(scope, receive, send)

        self.app = with_peer


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Be the one server of ``home``; the kernel gives the lock back however the process ends.

    Raises:
        Conflict: another one runs.
    """
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise Conflict(
                f"a control plane runs in {home.path} already (pid {home.running_pid()})",
                code="already-running",
                hint="Stop it with `farshore down`.",
            ) from error
        text = f"{os.getpid()}\n".encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
        durable.write(home.pid_file, text, 0o644)
        yield
        home.pid_file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def serve(home: Path, host: str | None = None, port: int | None = None, node_port: int | None = None) -> int:
    """Run a control plane until SIGTERM or SIGINT; returns the exit status.

    Raises:
        Conflict: another one runs on this home.
        Unavailable: a port is taken.
    """
    known = homes.initialise(home, host=host, port=port, node_port=node_port)
    with locked(known):
        context = open_context(known)
        try:
            asyncio.run(_serve(context))
        finally:
            context.store.close()
    return 0


async def _serve(ctx: Context) -> None:
    home = ctx.home
    sockets = [_bind(home.host, home.port), _bind(home.host, home.node_port)]
    ctx.bus.attach()
    api, nodes = create_apps(home, ctx)
    servers = [
        _Server(_config(api, home)),
        _Server(_config(nodes, home, http=PeerProtocol, ssl_context_factory=_node_tls(home))),
    ]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    from farshore.control.runtime import Runtime

    runtime = Runtime(ctx)
    await asyncio.to_thread(runtime.start)
    tasks = [
        asyncio.ensure_future(server.serve(sockets=[bound])) for server, bound in zip(servers, sockets, strict=True)
    ]
    log.warning("serving %s and, for nodes, %s", home.url, home.node_url)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    ctx.bus.close()
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)
    stopped.cancel()
    await asyncio.to_thread(runtime.stop)
    log.warning("stopped")


def _config(app: Any, home: Home, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_keyfile=home.secrets / "server.key",
        ssl_certfile=home.secrets / "server.pem",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        **more,
    )


def _node_tls(home: Home) -> Any:
    """Return a factory of the node listener's TLS context: TLS 1.3, a client certificate asked for but not required.

    Enrolment comes without a certificate; all other routes refuse a caller without one.
    """

    def factory(_config: uvicorn.Config, _default: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(home.secrets / "server.pem", home.secrets / "server.key")
        context.load_verify_locations(home.ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= _NO_CHECK_TIME
        return context

    return factory


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise Unavailable(
            f"{host}:{port} cannot be used: {error.strerror}",
            code="port-in-use",
            hint="Choose another with --port or --node-port.",
        ) from error
    bound.set_inheritable(False)
    return bound


def main(arguments: list[str] | None = None) -> int:
    """Run the server as ``python -m farshore.control.server``."""
    parser = argparse.ArgumentParser(prog="farshore.control.server", description=__doc__)
    parser.add_argument("--home", help="home directory (FARSHORE_HOME, else /var/lib/farshore)")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--node-port", type=int)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        return serve(homes.resolve(chosen.home), chosen.host, chosen.port, chosen.node_port)
    except FarshoreError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status


if __name__ == "__main__":
    raise SystemExit(main())
