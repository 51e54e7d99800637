"""AWS as far as Farshore uses it: a process of its own, real HTTP, one port for all services.

The block interfaces of EBS are ours (:mod:`doubles.aws.ebs`), the rest is moto's server with what it lacks added
(:mod:`doubles.aws.machines`). It does not know the adapter: everything is written from the vendor's documentation.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import boto3
from botocore.config import Config
from doubles.aws.sparse import copy

BLOCK: Final = 512 * 1024
ACCOUNT: Final = "123456789012"
_TESTS: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the double saw it. ``outcome``: ``ok``, the vendor's error code, ``lost``, ``cut`` or ``kill``."""

    service: str
    operation: str
    at: float
    outcome: str
    region: str = ""
    resource: str = ""


class AwsDouble:
    """``with AwsDouble(folder) as aws``: starts the process, ends it, and speaks to its control paths in between.

    ``bare``: blocks are stored as they come, nothing is hashed and moto is not loaded: to measure clients.
    """

    def __init__(self, folder: Path, *, region: str = "eu-central-1", bare: bool = False) -> None:
        self.folder = folder
        self.region = region
        self.port = 0
        self._bare = bare
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "doubles.aws.server", str(self.folder), *(["--bare"] if self._bare else [])]
        environment = {**os.environ, "PYTHONPATH": str(_TESTS), "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}
        log = (self.folder / "double.log").open("ab")
        with log:
            # It ends with its standard input, so that it never outlives whoever started it.
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.folder / "double.log").read_text(encoding="utf-8")
        self.port = int(line)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for client in self._clients.values():
            client.close()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        log = (self.folder / "double.log").read_text(encoding="utf-8")
        assert "Traceback" not in log, log

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """Return variables for boto3's default chain: credentials that open only this double."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str, *, region: str | None = None, attempts: int = 1, key: str | None = None) -> Any:
        """Return a boto3 client of this double that does not try again, unless told to."""
        place = region or self.region
        name = (service, f"{place}/{attempts}/{key}")
        with self._lock:
            if name not in self._clients:
                known = self.environment()
                self._clients[name] = boto3.session.Session().client(
                    service,
                    region_name=place,
                    endpoint_url=self.url,
                    aws_access_key_id=key or known["AWS_ACCESS_KEY_ID"],
                    aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
                    config=Config(
                        retries={"mode": "standard", "total_max_attempts": attempts},
                        max_pool_connections=32,
                        connect_timeout=10,
                        read_timeout=120,
                    ),
                )
            return self._clients[name]

    def command(self, name: str, **arguments: Any) -> Any:
        """Ask a control path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", f"/_double/{name}", json.dumps(arguments))
            reply = connection.getresponse()
            text = reply.read()
            assert reply.status == 200, text.decode()
            return json.loads(text)
        finally:
            connection.close()

    def calls(self, operation: str | None = None) -> list[Call]:
        """Return what was asked so far, in order."""
        known = (Call(*row) for row in self.command("calls"))
        return [call for call in known if operation is None or call.operation == operation]

    def forget_calls(self) -> None:
        """Begin the list of calls anew."""
        self.command("forget_calls")

    def clear(self) -> None:
        """Make the account empty: everything in it, faults, settings, the clock."""
        self.command("clear")

    def volume(self, volume_id: str) -> Path:
        """Return what a volume holds, as a raw sparse file; a test may write to it as a guest would."""
        return Path(self.command("volume", volume_id=volume_id))

    def devices(self, instance_id: str) -> Path:
        """Return the folder where an instance sees the volumes that are attached to it, as in ``/dev/disk/by-id``."""
        return Path(self.command("devices", instance_id=instance_id))

    def put_volume(self, volume_id: str, image: Path) -> None:
        """Fill a volume with a raw image, which is as long as the volume or shorter."""
        copy(image, self.volume(volume_id))

    def snapshot(self, snapshot_id: str) -> Path:
        """Return what a snapshot holds, as a raw sparse file (a copy)."""
        return Path(self.command("snapshot", snapshot_id=snapshot_id))

    def things(self) -> list[str]:
        """Name all that there is in the account now, but for what every account has; reads of EC2 may be behind."""
        return [str(name) for name in self.command("things")]

    def settings(self, **values: Any) -> None:
        """Set how the double behaves; see :class:`doubles.aws.behaviour.Behaviour`."""
        self.command("settings", values=values)

    def advance(self, seconds: float) -> None:
        """Move the double's clock: tokens run out, snapshots time out."""
        self.command("advance", seconds=seconds)

    def fault(self, operation: str, kind: str, times: int = 1, skip: int = 0, **details: Any) -> None:
        """Let something happen to calls of ``operation`` (``*``: any), after ``skip`` of them, ``times`` times."""
        self.command("fault", operation=operation, kind=kind, times=times, skip=skip, details=details)

    def pending_faults(self) -> int:
        """Return how many faults have not happened yet."""
        return int(self.command("pending_faults"))

    def policy(self, document: Mapping[str, Any] | None) -> None:
        """Allow only what an IAM policy document allows; None allows all."""
        self.command("policy", document=document)

    def hold(self, instance_id: str, *, held: bool = True) -> None:
        """Let an instance stay in the state that it passes through (``stopping``) until it is let go."""
        self.command("hold", instance_id=instance_id, held=held)

    def console(self, instance_id: str, text: str) -> None:
        """Let an instance's console show a text."""
        self.command("console", instance_id=instance_id, text=text)

    def agent(self, instance_id: str, *, prefix: Sequence[str] = (), **about: Any) -> None:
        """Register the agent of Systems Manager in an instance; see :class:`doubles.aws.ssm.Agent`.

        Its commands are really run, by this machine's ``sh``; ``prefix`` is put before it.
        """
        self.command("agent", instance_id=instance_id, about={"prefix": list(prefix), **about})

    def no_agent(self, instance_id: str) -> None:
        """Let it be gone."""
        self.command("agent", instance_id=instance_id, about=None)

    def billing(self, resource_id: str, details: str) -> None:
        """Let an instance or an image have other PlatformDetails than ``Linux/UNIX``."""
        self.command("billing", resource_id=resource_id, details=details)
