"""Run Command of Systems Manager. What is sent to an instance whose agent a test has registered is really run.

Sources: the API reference of Systems Manager (SendCommand, GetCommandInvocation, ListCommands,
DescribeInstanceInformation) and "Understanding command statuses" of its user guide.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from doubles.aws.errors import ApiError
from doubles.aws.http_server import Reply
from doubles.aws.world import World
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends

_PLATFORMS: Final = {"AWS-RunShellScript": "Linux", "AWS-RunPowerShellScript": "Windows"}
_STDOUT_CHARS: Final = 24_000
_STDERR_CHARS: Final = 8_000
_TERMINAL: Final = frozenset({"Success", "Failed", "TimedOut", "Cancelled"})


@dataclass
class Agent:
    """An instance's agent. ``prefix``: what its commands are begun with, to run where the machine is.

    ``silent``: it is registered, and takes nothing that is sent.
    """

    prefix: list[str]
    platform: str = "Linux"
    ping: str = "Online"
    silent: bool = False


@dataclass
class Command:
    """One command to one instance."""

    command_id: str
    instance_id: str
    document: str
    comment: str
    sent: float
    expires: float
    status: str = "Pending"
    details: str = "Pending"
    code: int = -1
    output: str = ""
    errors: str = ""
    hidden: int = 0
    looks: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class Ssm:
    """The service. The caller holds the world's lock; commands run in threads of their own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.agents: dict[str, Agent] = {}
        self.commands: dict[str, Command] = {}

    def clear(self) -> None:
        """Forget agents and commands."""
        self.agents.clear()
        self.commands.clear()

    def answer(self, operation: str, region: str, arguments: dict[str, Any]) -> Reply:
        """Answer one call."""
        method = {
            "SendCommand": self._send,
            "GetCommandInvocation": self._invocation,
            "ListCommands": self._list,
            "DescribeInstanceInformation": self._describe,
        }.get(operation)
        if method is None:
            raise ApiError("UnknownOperationException", operation)
        body = json.dumps(method(region, arguments)).encode()
        return Reply(200, {"Content-Type": "application/x-amz-json-1.1"}, body)

    def tags_of(self, operation: str, region: str, arguments: dict[str, Any]) -> tuple[dict[str, str], ...]:
        """Return the tags of each instance that a command is sent to."""
        known = ec2_backends[DEFAULT_ACCOUNT_ID][region].tags
        names = arguments.get("InstanceIds", []) if operation == "SendCommand" else []
        return tuple(dict(known.get(name, {})) for name in names)

    def _send(self, region: str, arguments: dict[str, Any]) -> dict[str, Any]:
        [instance_id] = arguments["InstanceIds"]
        document = arguments["DocumentName"]
        if document not in _PLATFORMS:
            raise ApiError("InvalidDocument", f"Document with name {document} does not exist.")
        if not 30 <= arguments.get("TimeoutSeconds", 3600) <= 2_592_000 or len(arguments.get("Comment", "")) > 100:
            raise ApiError("ValidationException", "1 validation error detected")
        unknown = arguments["Parameters"].keys() - {"commands", "executionTimeout", "workingDirectory"}
        [limit] = arguments["Parameters"].get("executionTimeout", ["3600"])
        if unknown or not 1 <= int(limit) <= 172_800:
            raise ApiError("InvalidParameters", "The parameters do not match the document.")
        agent = self.agents.get(instance_id)
        if agent is None or self._state(region, instance_id) in {None, "terminated", "shutting-down"}:
            raise ApiError("InvalidInstanceId", f"Instances [[{instance_id}]] not in a valid state for account")
        if agent.platform != _PLATFORMS[document]:
            raise ApiError("UnsupportedPlatformType", "The document does not support the platform type")
        now, behaviour = self._world.clock.now(), self._world.behaviour
        command = Command(
            str(uuid.uuid4()),
            instance_id,
            document,
            arguments.get("Comment", ""),
            now,
            now + arguments.get("TimeoutSeconds", 3600),
            hidden=behaviour.hidden_invocations,
            looks=behaviour.command_looks,
        )
        self.commands[command.command_id] = command
        if agent.ping == "Online" and not agent.silent and self._state(region, instance_id) == "running":
            command.status = command.details = "InProgress"
            lines = "\n".join(arguments["Parameters"]["commands"])
            threading.Thread(target=_run, args=(command, agent.prefix, lines, int(limit)), daemon=True).start()
        return {"Command": self._told(command)}

    def _state(self, region: str, instance_id: str) -> str | None:
        instance = ec2_backends[DEFAULT_ACCOUNT_ID][region].get_instance_by_id(instance_id)
        return None if instance is None else str(instance._state.name)

    def _invocation(self, _region: str, arguments: dict[str, Any]) -> dict[str, Any]:
        command = self.commands.get(arguments["CommandId"])
        if command is not None and command.hidden > 0:
            command.hidden -= 1
            command = None
        if command is None or command.instance_id != arguments["InstanceId"]:
            raise ApiError("InvocationDoesNotExist", "")
        self._age(command)
        status, details = command.status, command.details
        if command.done.is_set() and command.looks > 0:
            command.looks -= 1
            status = details = "InProgress"
        over = status in _TERMINAL
        return {
            "CommandId": command.command_id,
            "InstanceId": command.instance_id,
            "Comment": command.comment,
            "DocumentName": command.document,
            "PluginName": "aws:runShellScript",
            "ResponseCode": command.code if over else -1,
            "Status": status,
            "StatusDetails": details,
            "StandardOutputContent": command.output[:_STDOUT_CHARS] if status in {"Success", "Failed"} else "",
            "StandardErrorContent": command.errors[:_STDERR_CHARS] if over else "",
        }

    def _age(self, command: Command) -> None:
        """Let the time for the delivery run out."""
        if command.status == "Pending" and self._world.clock.now() > command.expires:
            command.status, command.details = "TimedOut", "Delivery Timed Out"
            command.done.set()

    def _list(self, _region: str, arguments: dict[str, Any]) -> dict[str, Any]:
        wanted = {one["key"]: one["value"] for one in arguments.get("Filters", [])}
        assert wanted.keys() <= {"InvokedAfter", "DocumentName"}, wanted
        after = datetime.fromisoformat(wanted.get("InvokedAfter", "1970-01-01T00:00:00Z")).timestamp()
        found = [
            self._told(one)
            for one in self.commands.values()
            if one.sent >= after and one.document == wanted.get("DocumentName", one.document)
        ]
        return _page(found, "Commands", arguments)

    def _told(self, command: Command) -> dict[str, Any]:
        return {
            "CommandId": command.command_id,
            "DocumentName": command.document,
            "Comment": command.comment,
            "RequestedDateTime": command.sent,
            "InstanceIds": [command.instance_id],
            "Status": command.status,
        }

    def _describe(self, region: str, arguments: dict[str, Any]) -> dict[str, Any]:
        wanted = {one["Key"]: one["Values"] for one in arguments.get("Filters", [])}
        assert wanted.keys() <= {"InstanceIds"}, wanted
        found = [
            {
                "InstanceId": name,
                "PingStatus": agent.ping,
                "PlatformType": agent.platform,
                "AgentVersion": "3.3.0.0",
                "LastPingDateTime": datetime.now(UTC).timestamp(),
            }
            for name, agent in self.agents.items()
            if name in wanted.get("InstanceIds", [name]) and self._state(region, name) == "running"
        ]
        return _page(found, "InstanceInformationList", arguments)


def _page(found: list[dict[str, Any]], key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    begin, size = int(arguments.get("NextToken") or 0), arguments.get("MaxResults", 10)
    following = {"NextToken": str(begin + size)} if begin + size < len(found) else {}
    return {key: found[begin : begin + size], **following}


def _run(command: Command, prefix: list[str], lines: str, limit_s: int) -> None:
    """Run a script as the agent does: in a file of its own, killed with all that it began when its time is over."""
    with tempfile.TemporaryDirectory(prefix="ssm-") as folder:
        script = Path(folder) / "_script.sh"
        script.write_text(lines + "\n", encoding="utf-8")
        process = subprocess.Popen(
            [*prefix, "sh", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            command.details, command.status = "Execution Timed Out", "TimedOut"
            command.code = 137
            command.done.set()
            return
    command.output, command.errors = output.decode(errors="replace"), errors.decode(errors="replace")
    command.code = process.returncode
    command.details = command.status = "Success" if process.returncode == 0 else "Failed"
    command.done.set()
