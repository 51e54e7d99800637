"""The double's process: ``python -m doubles.aws.server FOLDER`` prints its port and serves until its input ends."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from doubles.aws import ebs, errors, ssm
from doubles.aws.faults import Fault
from doubles.aws.http_server import Reply, Request, Server
from doubles.aws.moto_half import MotoHalf
from doubles.aws.world import World

_CONTROL: Final = "/_double/"


class Double:
    """Routes calls: control paths, EBS to our half, all else to moto's."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.moto = MotoHalf(self.world)

    def handle(self, request: Request) -> Reply:
        """Answer one request."""
        if request.target.startswith(_CONTROL):
            return self._control(request.target.removeprefix(_CONTROL), json.loads(bytes(request.body) or b"{}"))
        service, region = _scope(request)
        if service == "ebs":
            operation, resource = ebs.operation_of(request), ebs.resource_of(request)
        else:
            operation, resource = self.moto.operation_of(service, request), ""
        world = self.world
        with world.lock:
            fault = world.faults.take(operation)
        outcome, reply = self._answered(service, operation, region, request, fault)
        if fault is not None and fault.kind == "lost":
            outcome, reply = "lost", Reply(0, cut=True)
        with world.lock:
            world.record(service, operation, outcome, region, resource)
        if fault is not None and fault.kind == "kill-after":
            _kill(fault)
            return Reply(0, cut=True)
        return reply

    def _answered(
        self, service: str, operation: str, region: str, request: Request, fault: Fault | None
    ) -> tuple[str, Reply]:
        try:
            if fault is not None:
                if fault.kind in {"cut", "kill"}:
                    _kill(fault)
                    return fault.kind, Reply(0, cut=True)
                self._refuse(service, fault)
            self._admit(service, operation, region, request)
            if service == "ebs":
                reply = ebs.answer(self.world, operation, region, request, fault)
            else:
                stale = fault is not None and fault.kind == "stale"
                reply = self.moto.answer(service, operation, region, request, as_before=stale)
        except errors.ApiError as error:
            return error.code, Reply(*error.reply(service))
        except Exception:  # noqa: BLE001 - whatever it is: the double is broken, and whoever uses it must see that
            traceback.print_exc()
            return "broken", Reply(599, {}, b"the double is broken, see its log")
        return ("ok" if reply.status < 400 else self.moto.code_of(reply)), reply

    def _refuse(self, service: str, fault: Fault) -> None:
        match fault.kind:
            case "throttle":
                raise errors.throttled(service)
            case "5xx":
                raise errors.broken(service)
            case "expired-credentials":
                raise errors.expired_credentials(service)
            case "error":
                details = fault.details
                raise errors.ApiError(
                    details["code"], details.get("message", details["code"]), details.get("reason", "")
                )

    def _admit(self, service: str, operation: str, region: str, request: Request) -> None:
        if "authorization" not in request.headers and "X-Amz-Signature" not in request.query_text:
            if operation == "AssumeRoleWithWebIdentity":
                return
            raise errors.ApiError("MissingAuthenticationTokenException", "Missing Authentication Token")
        with self.world.lock:
            resource = self.moto.resource_of(service, request)
            tags = self.moto.tags_of(service, operation, region, request)
            self.world.admit(service, operation, _key(request), region, resource, tags)
        if service == "ec2" and b"DryRun=true" in request.body:
            raise errors.ApiError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")

    def _control(self, name: str, arguments: dict[str, Any]) -> Reply:
        with self.world.lock:
            result = getattr(self, f"_do_{name}")(**arguments)
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(result).encode())

    def _do_calls(self) -> list[tuple[str, str, float, str, str, str]]:
        return self.world.calls

    def _do_forget_calls(self) -> None:
        self.world.calls.clear()

    def _do_clear(self) -> None:
        self.world.clear()
        self.moto.clear()

    def _do_volume(self, volume_id: str) -> str:
        assert volume_id in self.world.blocks.volumes, volume_id
        return str(self.world.blocks.volume_path(volume_id))

    def _do_devices(self, instance_id: str) -> str:
        return str(self.world.blocks.devices(instance_id))

    def _do_snapshot(self, snapshot_id: str) -> str:
        path = self.world.folder / "images" / f"{snapshot_id}.raw"
        self.world.blocks.flatten(self.world.blocks.snapshots[snapshot_id], path)
        return str(path)

    def _do_things(self) -> list[str]:
        return self.moto.things()

    def _do_settings(self, values: dict[str, Any]) -> None:
        self.world.behaviour.update(values)

    def _do_advance(self, seconds: float) -> None:
        self.world.clock.ahead += seconds

    def _do_fault(self, operation: str, kind: str, times: int, skip: int, details: dict[str, Any]) -> None:
        self.world.faults.add(Fault(operation, kind, times, skip, details))

    def _do_pending_faults(self) -> int:
        return len(self.world.faults)

    def _do_policy(self, document: dict[str, Any] | None) -> None:
        self.world.policy.set(document)

    def _do_billing(self, resource_id: str, details: str) -> None:
        self.moto.set_billing(resource_id, details)

    def _do_hold(self, instance_id: str, held: bool) -> None:
        (self.world.held.add if held else self.world.held.discard)(instance_id)

    def _do_agent(self, instance_id: str, about: dict[str, Any] | None) -> None:
        if about is None:
            self.moto.ssm.agents.pop(instance_id, None)
        else:
            self.moto.ssm.agents[instance_id] = ssm.Agent(**about)

    def _do_console(self, instance_id: str, text: str) -> None:
        self.moto.consoles[instance_id] = text


def _kill(fault: Fault) -> None:
    if (pid := fault.details.get("pid")) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _scope(request: Request) -> tuple[str, str]:
    """Return service and region, as the signature's scope names them."""
    authorization = request.headers.get("authorization", "")
    if "Credential=" in authorization:
        _, _, region, service, _ = authorization.partition("Credential=")[2].split(",")[0].split("/")
        return service, region
    if "X-Amz-Credential" in request.query_text:
        _, _, region, service, _ = parse_qs(request.query_text)["X-Amz-Credential"][0].split("/")
        return service, region
    return ("sts", "us-east-1") if b"Action=AssumeRole" in request.body else ("s3", "us-east-1")


def _key(request: Request) -> str:
    """Return the access key that a request is signed with."""
    credential = request.headers.get("authorization", "").partition("Credential=")[2]
    return (credential or parse_qs(request.query_text).get("X-Amz-Credential", [""])[0]).partition("/")[0]


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bare", action="store_true")
    arguments = parser.parse_args()
    double = Double(arguments.folder)
    if arguments.bare:
        double.world.behaviour.verify = False
    server = Server(double.handle)
    threading.Thread(target=server.serve, daemon=True).start()
    print(server.port, flush=True)  # noqa: T201 - whoever started it reads it
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
