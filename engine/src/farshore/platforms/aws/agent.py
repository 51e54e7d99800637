"""An instance's SSM Agent in the place of a guest agent: what the QEMU guest agent is asked, said by Run Command.

What a plan says becomes base64 in a script that is always the same: no text of it is ever a word of a shell, nor a
reference to the parameter store, which Systems Manager would look for in braces.
"""

from __future__ import annotations

import base64
import binascii
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from farshore.errors import Permanent, Retry
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.commands import Commands, Ended

#: Bytes of a command's output that fit, as base64, into what Run Command hands back.
_OUTPUT_BYTES: Final = 16_000
#: The end of a script is this status, whatever the command's: 194 and 3010 would have the agent restart the machine.
_SHELL: Final = (
    "PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "kept=$(mktemp) || exit 1",
    "trap 'rm -f \"$kept\"' EXIT",
    '"$@" >"$kept" 2>&1 </dev/null',
    "echo $?",
    f'head -c {_OUTPUT_BYTES} "$kept" | base64',
    "exit 0",
)
_POWERSHELL: Final = (
    "$words = @('{words}'.Split(' ') | ForEach-Object {{",
    "  [Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($_)) }})",
    "$start = New-Object Diagnostics.ProcessStartInfo",
    "$start.FileName = $words[0]",
    "if ($words.Count -gt 1) {{ $start.Arguments = $words[1] }}",
    "$start.UseShellExecute = $false",
    "$start.RedirectStandardInput = $true",
    "$start.RedirectStandardOutput = $true",
    "$start.RedirectStandardError = $true",
    "try {{ $made = [Diagnostics.Process]::Start($start) }} catch {{",
    "  $text = [Text.Encoding]::UTF8.GetBytes($_.Exception.Message)",
    "  Write-Output 127 ([Convert]::ToBase64String($text)); exit 0 }}",
    "$made.StandardInput.Close()",
    "$other = $made.StandardError.ReadToEndAsync()",
    "$bytes = [Text.Encoding]::UTF8.GetBytes($made.StandardOutput.ReadToEnd() + $other.Result)",
    "$made.WaitForExit()",
    f"$length = [Math]::Min($bytes.Length, {_OUTPUT_BYTES})",
    "Write-Output $made.ExitCode ([Convert]::ToBase64String($bytes, 0, $length))",
    "exit 0",
)
_POLL_S: Final = 1.0


class Agent:
    """Answers as the QEMU guest agent does, as far as probes ask it: ping, and a program with its end."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._commands = Commands(account)

    def ask(self, machine_id: str, request: Mapping[str, Any], timeout_s: float) -> Any:
        """Return what the agent answers under ``return``. ``pid`` is the id of a command.

        Raises:
            Retry: the agent is not registered, or the command did not come to its end.
            Permanent: the request is not one of those.
        """
        arguments = request.get("arguments") or {}
        match request.get("execute"):
            case "guest-ping":
                self._commands.managed(machine_id)
                return {}
            case "guest-exec":
                platform = str(self._commands.managed(machine_id).get("PlatformType"))
                lines = script(platform, [str(arguments["path"]), *map(str, arguments.get("arg") or ())])
                return {"pid": self._commands.send(machine_id, platform, lines, timeout_s)}
            case "guest-exec-status":
                return self._status(machine_id, str(arguments["pid"]), timeout_s)
            case other:
                raise Permanent(
                    f"Run Command has no word for {other}",
                    code="agent-refuses",
                    hint="What freezes file systems around a checkpoint is not asked of machines in AWS.",
                    asked=other,
                )

    def _status(self, machine_id: str, command_id: str, timeout_s: float) -> dict[str, Any]:
        ended = self._commands.ended(machine_id, command_id)
        if ended is None:
            time.sleep(min(self._account.settings.poll_s, _POLL_S, timeout_s))
            ended = self._commands.ended(machine_id, command_id)
        return {"exited": False} if ended is None else outcome(machine_id, ended)


def script(platform: str, words: Sequence[str]) -> list[str]:
    """Return the lines that run a program with arguments, and print its exit status and its output as base64.

    Raises:
        Permanent: there is no such script for the platform.
    """
    if platform == "Linux":
        # A line end at the end of a word would be lost; the x after it keeps it.
        lines = ["set --"]
        for word in words:
            lines += [f"word=$(printf %s {_coded(word)} | base64 -d; echo x)", 'set -- "$@" "${word%x}"']
        return [*lines, *_SHELL]
    if platform == "Windows":
        given = " ".join(_coded(word) for word in (words[0], subprocess.list2cmdline(words[1:])) if word)
        return [line.format(words=given) for line in _POWERSHELL]
    raise Permanent(f"commands in machines of platform {platform} are not known", code="agent-refuses")


def outcome(machine_id: str, ended: Ended) -> dict[str, Any]:
    """Return what the guest agent would say of a script that has ended.

    Raises:
        Retry: the script failed before the command.
    """
    first, _, rest = ended.output.strip().partition("\n")
    try:
        text = base64.b64decode("".join(rest.split()), validate=True)
        return {"exited": True, "exitcode": int(first), "out-data": base64.b64encode(text).decode()}
    except (ValueError, binascii.Error) as error:
        raise Retry(
            f"the command in {machine_id} did not come to run: {(ended.errors or ended.output).strip()[:200]}",
            code="command-not-run",
            machine_id=machine_id,
        ) from error


def _coded(word: str) -> str:
    return base64.b64encode(word.encode()).decode()
