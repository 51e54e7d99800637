"""Commands in instances, by Run Command of Systems Manager: sent once, looked for until they have ended.

https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_SendCommand.html and API_GetCommandInvocation.html.
SendCommand has no token by which a second call would find the first one's work: what was sent is found by its comment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import uuid4

from farshore.errors import FarshoreError, Retry
from farshore.platforms.aws.account import PAUSE_FIRST_S, Account, patiently, wait_for

#: Documents of the vendor that run what they are given, by the instance's platform.
DOCUMENTS: Final = {"Linux": "AWS-RunShellScript", "Windows": "AWS-RunPowerShellScript"}
#: Most characters of a command's output that are handed back.
OUTPUT_CHARS: Final = 24_000
#: A command that was not delivered for so long is not run any more; the least that may be said.
_DELIVERY_S: Final = 30
_UNDER_WAY: Final = frozenset({"Pending", "InProgress", "Delayed", "Cancelling"})
#: It may have been sent although this is what was heard.
_DOUBTFUL: Final = frozenset({"reply-lost", "provider-error", "provider-unreachable"})
#: Clocks of nodes are not the vendor's.
_SKEW: Final = timedelta(minutes=5)
#: What was sent is in the list of commands some time later: looked for so often, before it is sent again.
_LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended by itself, with the exit status of its script and the beginning of what it wrote."""

    exit_status: int
    output: str
    errors: str


class Commands:
    """Run Command in one region. Safe from several threads."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def managed(self, machine_id: str) -> dict[str, Any]:
        """Return what is known of an instance whose agent is at work.

        Raises:
            Retry: its agent is not registered, or has not been heard of for some minutes (``agent-not-registered``).
        """
        wanted = [{"Key": "InstanceIds", "Values": [machine_id]}]
        try:
            reply = self._account.patiently("ssm", "describe_instance_information", Filters=wanted)
        except FarshoreError as error:
            if error.evidence.get("aws_code") != "InvalidInstanceId":
                raise
            reply = {"InstanceInformationList": []}
        found = next((dict(item) for item in reply["InstanceInformationList"]), None)
        if found is None or found.get("PingStatus") != "Online":
            raise _unmanaged(machine_id, "is not registered" if found is None else f"is {found.get('PingStatus')}")
        return found

    def run(self, machine_id: str, platform: str, lines: Sequence[str], within_s: float) -> Ended:
        """Run a script and wait for its end.

        Raises:
            Retry: it has not ended ``within_s``, or did not come to run.
        """
        until = time.monotonic() + within_s
        command_id = self.send(machine_id, platform, lines, within_s)

        def late() -> FarshoreError:
            return Retry(
                f"command {command_id} in {machine_id} has not ended in {within_s:g} s",
                code="command-slow",
                machine_id=machine_id,
            )

        left = max(0.0, until - time.monotonic())
        return wait_for(partial(self.ended, machine_id, command_id), self._account.settings.poll_s, left, late)

    def send(self, machine_id: str, platform: str, lines: Sequence[str], within_s: float) -> str:
        """Have a script run as root or SYSTEM, and killed after ``within_s``; return the command's id.

        Raises:
            Retry: the agent is not registered, or it could not be sent; it is not run then, or once at most.
        """
        comment = f"farshore {uuid4()}"
        document = DOCUMENTS[platform]
        began = datetime.now(UTC)
        until = time.monotonic() + within_s
        while True:
            try:
                reply = self._account.call(
                    "ssm",
                    "send_command",
                    InstanceIds=[machine_id],
                    DocumentName=document,
                    Comment=comment,
                    TimeoutSeconds=max(_DELIVERY_S, math.ceil(within_s)),
                    Parameters={"commands": list(lines), "executionTimeout": [str(max(1, math.ceil(within_s)))]},
                )
                return str(reply["Command"]["CommandId"])
            except FarshoreError as error:
                if error.evidence.get("aws_code") == "InvalidInstanceId":
                    raise _unmanaged(machine_id, "is not registered") from error
                if not isinstance(error, Retry):
                    raise
                if error.code in _DOUBTFUL and (found := self._sent(comment, document, began)) is not None:
                    return found
                if time.monotonic() >= until:
                    raise
            time.sleep(PAUSE_FIRST_S)

    def ended(self, machine_id: str, command_id: str) -> Ended | None:
        """Return how a command ended; None while it is under way, or not to be seen yet.

        Raises:
            Retry: it was not run, or not to its end; the message says which.
        """
        try:
            reply = patiently(
                partial(
                    self._account.call, "ssm", "get_command_invocation", CommandId=command_id, InstanceId=machine_id
                )
            )
        except FarshoreError as error:
            # It was sent a moment ago: reads of Systems Manager are behind.
            if error.evidence.get("aws_code") == "InvocationDoesNotExist":
                return None
            raise
        if reply["Status"] in _UNDER_WAY:
            return None
        # The exit status is -1 where the script has not begun; who ends it before its end says so in the details.
        if reply["StatusDetails"] not in {"Success", "Failed"} or int(reply["ResponseCode"]) < 0:
            raise Retry(
                f"the command in {machine_id} was not run to its end: {reply['StatusDetails']}",
                code="command-not-run",
                machine_id=machine_id,
                command_id=command_id,
            )
        return Ended(
            int(reply["ResponseCode"]),
            str(reply.get("StandardOutputContent") or ""),
            str(reply.get("StandardErrorContent") or ""),
        )

    def _sent(self, comment: str, document: str, began: datetime) -> str | None:
        """Return the command that an answer is missing of, if it was sent after all."""
        filters = [
            {"key": "InvokedAfter", "value": (began - _SKEW).strftime("%Y-%m-%dT%H:%M:%SZ")},
            {"key": "DocumentName", "value": document},
        ]
        for number in range(_LOOKS):
            if number:
                time.sleep(min(self._account.settings.poll_s, 1.0))
            for page in self._account.pages("ssm", "list_commands", Filters=filters, MaxResults=50):
                for item in page["Commands"]:
                    if item.get("Comment") == comment:
                        return str(item["CommandId"])
        return None


def _unmanaged(machine_id: str, how: str) -> Retry:
    return Retry(
        f"the agent of Systems Manager in {machine_id} {how}",
        code="agent-not-registered",
        hint="It needs the SSM Agent, an instance profile with AmazonSSMManagedInstanceCore, and a way to the endpoints"
        " ssm, ssmmessages and ec2messages of its region.",
        machine_id=machine_id,
    )
