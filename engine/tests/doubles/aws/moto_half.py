"""Moto's server in this process, called as the WSGI application that it is, one call at a time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from doubles.aws import machines
from doubles.aws.http_server import Reply, Request
from doubles.aws.world import World
from moto.core.base_backend import BackendDict
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

_QUERY: Final = frozenset({"ec2", "sts", "iam"})


class MotoHalf:
    """Everything that is not EBS."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.consoles: dict[str, str] = {}
        self._application = DomainDispatcherApplication(create_backend_app)
        machines.install(world)

    def clear(self) -> None:
        """Make the account empty."""
        self.consoles.clear()
        BackendDict.reset()

    def operation_of(self, service: str, request: Request) -> str:
        """Return which operation a request asks for."""
        if service in _QUERY:
            return parse_qs(request.body.decode()).get("Action", ["Unknown"])[0]
        if target := request.headers.get("x-amz-target"):
            return target.rpartition(".")[2]
        return _s3_operation(request) if service == "s3" else "Unknown"

    def answer(self, request: Request) -> Reply:
        """Let moto answer."""
        with self.world.lock:
            return self._call(request)

    def _call(self, request: Request) -> Reply:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": request.path.encode().decode("latin-1"),
            "QUERY_STRING": request.query_text,
            "RAW_URI": request.target,
            "REQUEST_URI": request.target,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(request.body)),
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in request.headers.items():
            if name not in {"content-length", "content-type", "transfer-encoding", "expect"}:
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        reply = Reply(500)

        def start(status: str, headers: list[tuple[str, str]], _error: object = None) -> Callable[[bytes], object]:
            reply.status = int(status.split(" ", 1)[0])
            reply.headers = {
                name: value for name, value in headers if name.lower() not in {"transfer-encoding", "connection"}
            }
            return lambda _data: None

        pieces = self._application(environ, start)
        reply.body = b"".join(pieces)
        if request.method != "HEAD":
            reply.headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-length"}
        return reply

    def code_of(self, reply: Reply) -> str:
        """Return the error code of a reply."""
        found = re.search(rb"<Code>([^<]+)</Code>|\"__type\": ?\"(?:[^\"#]*#)?([^\"]+)\"", bytes(reply.body))
        if found is None:
            return str(reply.status)
        return (found[1] or found[2]).decode()


def _s3_operation(request: Request) -> str:
    """Name what a path-style S3 request does."""
    bucket, _, key = request.path.strip("/").partition("/")
    query = request.query
    for name, operation in _S3_SUB.get(request.method, {}).items():
        if name in query:
            return operation
    if not bucket:
        return "ListBuckets"
    of = {"GET": "GetObject", "PUT": "PutObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
    on = {"GET": "ListObjects", "PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}
    return (of if key else on).get(request.method, "Unknown")


_S3_SUB: Final = {
    "GET": {
        "list-type": "ListObjectsV2",
        "versions": "ListObjectVersions",
        "location": "GetBucketLocation",
        "versioning": "GetBucketVersioning",
        "publicAccessBlock": "GetPublicAccessBlock",
        "encryption": "GetBucketEncryption",
        "tagging": "GetObjectTagging",
        "policy": "GetBucketPolicy",
    },
    "PUT": {
        "versioning": "PutBucketVersioning",
        "publicAccessBlock": "PutPublicAccessBlock",
        "encryption": "PutBucketEncryption",
        "tagging": "PutObjectTagging",
        "policy": "PutBucketPolicy",
        "lifecycle": "PutBucketLifecycleConfiguration",
    },
    "POST": {"delete": "DeleteObjects"},
}
