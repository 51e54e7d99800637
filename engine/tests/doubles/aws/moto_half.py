"""Moto's server in this process, called as the WSGI application that it is, one call at a time."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from doubles.aws import buckets, identities, images, instances, interfaces, ssm, stale, storage
from doubles.aws.errors import STATUS, ApiError
from doubles.aws.http_server import Reply, Request
from doubles.aws.world import World
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BackendDict
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends

_QUERY: Final = frozenset({"ec2", "sts", "iam"})
#: How calls begin that remove things.
_REMOVALS: Final = ("Delete", "Deregister", "Terminate")


class MotoHalf:
    """Everything that is not EBS."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.consoles: dict[str, str] = {}
        self.ssm = ssm.Ssm(world)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._stale = stale.Before()
        world.started = self._stale.started
        world.policies_of = identities.documents
        buckets.install(world)
        storage.install(world)
        images.install(world)
        instances.install(world, self.consoles)
        interfaces.install()

    def clear(self) -> None:
        """Make the account empty."""
        self.consoles.clear()
        self.ssm.clear()
        self._stale.clear()
        BackendDict.reset()

    def operation_of(self, service: str, request: Request) -> str:
        """Return which operation a request asks for."""
        if service in _QUERY:
            return parse_qs(request.body.decode()).get("Action", ["Unknown"])[0]
        if target := request.headers.get("x-amz-target"):
            return target.rpartition(".")[2]
        return _s3_operation(request) if service == "s3" else "Unknown"

    def resource_of(self, service: str, request: Request) -> str:
        """Return the ARN that a request is about, where it is told by its path."""
        return f"arn:aws:s3:::{request.path.strip('/')}" if service == "s3" and request.path != "/" else ""

    def tags_of(self, service: str, operation: str, region: str, request: Request) -> tuple[dict[str, str], ...]:
        """Return the tags of each thing that a call to EC2 would remove."""
        if service != "ec2" or operation == "DeleteTags" or not operation.startswith(_REMOVALS):
            return ()
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][region]
        named = {value for values in parse_qs(request.body.decode()).values() for value in values}
        return tuple(dict(backend.tags.get(value, {})) for value in sorted(named & set(_things(backend))))

    def answer(self, service: str, operation: str, region: str, request: Request, *, as_before: bool) -> Reply:
        """Let moto answer; ``as_before``: a describe does not know of the newest."""
        with self.world.lock:
            if service == "ssm":
                return self.ssm.answer(operation, region, json.loads(bytes(request.body)))
            if service == "servicequotas":
                return _quota(self.world, operation, region, json.loads(bytes(request.body)))
            if service == "sts" and operation == "AssumeRole":
                self._check_trust(parse_qs(request.body.decode()))
            if service == "ec2" and operation.startswith("Describe"):
                return self._stale.answer(region, request, self._called, as_before=as_before)
            if service == "ec2":
                return self._once(operation, region, request)
            return self._called(request)

    def _called(self, request: Request) -> Reply:
        reply = self._call(request)
        if reply.status == 400 and (status := STATUS.get(self.code_of(reply))):
            reply.status = status
        return reply

    def _once(self, operation: str, region: str, request: Request) -> Reply:
        """Give a client token's second call the first one's reply: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html."""
        arguments = parse_qs(request.body.decode())
        token = arguments.pop("ClientToken", [""])[0]
        key = (region, operation, token)
        if not token or "DryRun" in arguments:
            reply = self._called(request)
            self._stale.made(operation, bytes(reply.body))
            return reply
        if key in self.world.tokens:
            known, reply = self.world.tokens[key]
            if known != arguments:
                raise ApiError("IdempotentParameterMismatch", "The token was used with other arguments")
            return reply
        reply = self._called(request)
        if reply.status < 400:
            self.world.tokens[key] = (arguments, reply)
            self._stale.made(operation, bytes(reply.body))
        return reply

    def _check_trust(self, arguments: dict[str, list[str]]) -> None:
        role = arguments["RoleArn"][0]
        said = arguments.get("ExternalId", [None])[0]
        if self.world.behaviour.external_ids.get(role, said) != said or not identities.trusts(role, said):
            who = "User: arn:aws:iam::123456789012:user/farshore"
            raise ApiError("AccessDenied", f"{who} is not authorized to perform: sts:AssumeRole on resource: {role}")

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

    def things(self) -> list[str]:
        """Name all that is in the account: what EC2 has in any region, and objects that are not empty."""
        found: list[str] = []
        for backend in ec2_backends[DEFAULT_ACCOUNT_ID].values():
            found += _things(backend)
        for bucket in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets.values():
            found += [name for name, key in bucket.keys.items() if key.size > 0]
        return sorted(found)

    def set_billing(self, resource_id: str, details: str) -> None:
        """Let an instance or image be billed as ``Windows`` or the like: its PlatformDetails."""
        for backend in ec2_backends[DEFAULT_ACCOUNT_ID].values():
            if resource_id in backend.amis:
                backend.amis[resource_id].platform_details = details
            elif (instance := backend.get_instance_by_id(resource_id)) is not None:
                instance.platform_details = details

    def code_of(self, reply: Reply) -> str:
        """Return the error code of a reply."""
        found = re.search(rb"<Code>([^<]+)</Code>|\"__type\": ?\"(?:[^\"#]*#)?([^\"]+)\"", bytes(reply.body))
        if found is None:
            return str(reply.status)
        return (found[1] or found[2]).decode()


def _quota(world: World, operation: str, region: str, arguments: dict[str, Any]) -> Reply:
    """Answer GetServiceQuota for the quotas that matter here."""
    names = {
        ("ec2", "L-1216C47A"): ("vcpus", 1),
        ("ebs", "L-309BACF6"): ("snapshots", 1),
        ("ebs", "L-94D7AB7D"): ("pending_snapshots", 1),
        ("ebs", "L-7A658B76"): ("volume_gib", 1024),
    }
    key = (arguments.get("ServiceCode", ""), arguments.get("QuotaCode", ""))
    if operation not in {"GetServiceQuota", "GetAWSDefaultServiceQuota"} or key not in names:
        raise ApiError("NoSuchResourceException", "The request failed because the specified quota does not exist.")
    name, unit = names[key]
    value = world.behaviour.quota(name, region) / unit
    quota = {"ServiceCode": key[0], "QuotaCode": key[1], "QuotaName": key[1], "Value": value, "Adjustable": True}
    body = json.dumps({"Quota": quota}).encode()
    return Reply(200, {"Content-Type": "application/x-amz-json-1.1"}, body)


def _things(backend: Any) -> list[str]:
    """Name what EC2 has in a region."""
    return [
        *(*backend.snapshots, *backend.volumes, *backend.enis, *backend.vpcs),
        *(name for subnets in backend.subnets.values() for name in subnets),
        *(name for name, image in backend.amis.items() if image.owner_id == backend.account_id),
        *(name for groups in backend.groups.values() for name in groups),
        *(one.id for one in backend.all_instances() if one._state.name != "terminated"),
    ]


def _s3_operation(request: Request) -> str:
    """Name what a path-style S3 request does."""
    bucket, _, key = request.path.strip("/").partition("/")
    query = request.query
    for name, operation in _S3_SUB.get(request.method, {}).items():
        if name in query:
            return operation if key else operation.replace("ObjectTagging", "BucketTagging")
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
        "ownershipControls": "GetBucketOwnershipControls",
        "lifecycle": "GetBucketLifecycleConfiguration",
    },
    "PUT": {
        "versioning": "PutBucketVersioning",
        "publicAccessBlock": "PutPublicAccessBlock",
        "encryption": "PutBucketEncryption",
        "tagging": "PutObjectTagging",
        "policy": "PutBucketPolicy",
        "ownershipControls": "PutBucketOwnershipControls",
        "lifecycle": "PutBucketLifecycleConfiguration",
    },
    "POST": {"delete": "DeleteObjects"},
}
