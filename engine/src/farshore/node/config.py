"""The node's settings, a YAML file that an administrator writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator

from farshore.errors import Invalid, NotFound
from farshore.model.base import Duration, Model, Name, Size

DEFAULT_PATH = Path("/etc/farshore/node.yml")


class Limits(Model):
    """How many tasks of each lane run at once.

    A replication holds a window per disk and reads and writes at full speed, so few; waiting for a guest to answer
    costs nothing, so many.
    """

    replicate: int = Field(4, ge=1, le=64)
    machine: int = Field(32, ge=1, le=1024)
    quick: int = Field(8, ge=1, le=256)
    #: Each takes a processor and some 150 MiB of memory while it plays.
    hook: int = Field(4, ge=1, le=64)


class Hooks(Model):
    """How files of Ansible tasks are played: hooks, and probes of that kind.

    ``user``: whom they run as; default ``farshore-hooks`` where the node is root, else the node's own user, for it can
    be nobody else. ``python``: an interpreter that has ansible-core and ansible-runner, by default the node's own.
    ``work_dir``: where their files lie while they play; default ``/var/lib/farshore-hooks`` where they run as another
    user, else ``<state_dir>/hooks``.
    """

    user: str | None = Field(None, pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    python: Path | None = None
    work_dir: Path | None = None

    @field_validator("python", "work_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"{str(value)!r} is relative; a service has no working directory, write the whole path")
        return value


class Address(Model):
    """Where a listener waits."""

    host: str
    port: int = Field(ge=0, le=65535)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the host and port that ``"127.0.0.1:9101"`` or ``"[::1]:9101"`` names.

    Raises:
        ValueError: it names none.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address; write it as 127.0.0.1:9101")
    return Address(host=host, port=int(port))


class NodeConfig(Model):
    """One node.

    Attributes:
        name: the node's name, as it was registered with the control plane.
        site: the site whose tasks it executes.
        roles: what it offers.
        control_url: the control plane's node listener, ``https://host:8444``.
        state_dir: key, certificate, tasks and journals; survives restarts, belongs to this node alone.
        data_listen: ``host:port`` of the data listener; port 0 takes a free one; ``none``: nobody reaches this node, it
            dials where the site link says that the other side listens.
        platform: ``{type: kvm, ...}``, ``{type: aws, ...}`` or ``{type: file, root: DIR}``; its package checks it.
        ca_path: the control plane's CA certificate, where one was put there beforehand.
        log_file: where a detached node writes its log; default ``<state_dir>/node.log``.
        node_window: bytes in flight of all disks together; default a quarter of the memory, 512 MiB at most.
        workers: processes beside the node's own that copy; ``auto``: one less than processors, 4 at most, none where
            there are two processors or fewer.
        hooks: how files of Ansible tasks are played.
        secrets_dir: files of mode 0600, called as plans call the secrets; default ``<state_dir>/secrets``.
        poll_wait: how long the control plane may hold a poll open, at most 30 s.
    """

    name: Name
    site: Name
    roles: tuple[Literal["replication", "recovery"], ...] = ("replication", "recovery")
    control_url: str
    state_dir: Path
    data_listen: str = "127.0.0.1:9101"
    platform: dict[str, Any]
    ca_path: Path | None = None
    log_file: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    poll_wait: Duration = Field(10.0, ge=0, le=30)
    limits: Limits = Limits()
    node_window: Size | None = Field(None, ge=1 << 20)
    workers: Annotated[int, Field(ge=0, le=32)] | Literal["auto"] = "auto"
    hooks: Hooks = Hooks()
    secrets_dir: Path | None = None

    @field_validator("control_url")
    @classmethod
    def _is_https(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"{value!r} is no https address; write it as https://control.example:8444")
        return value.rstrip("/")

    @field_validator("state_dir", "ca_path", "log_file", "secrets_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"{str(value)!r} is relative; a service has no working directory, write the whole path")
        return value

    @field_validator("data_listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return value if value == "none" else str(parse_address(value))

    @field_validator("platform")
    @classmethod
    def _has_type(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("type"), str):
            raise ValueError("type is missing; write type: kvm, type: file or type: aws")  # noqa: TRY004 - pydantic's own kind
        return value

    @property
    def log_path(self) -> Path:
        """Where a detached node writes its log."""
        return self.log_file or self.state_dir / "node.log"

    @property
    def secrets_path(self) -> Path:
        """Where the secrets lie that plans name."""
        return self.secrets_dir or self.state_dir / "secrets"

    @property
    def lock_path(self) -> Path:
        """What a running node holds locked."""
        return self.state_dir / "node.lock"

    @property
    def pid_path(self) -> Path:
        """Where a detached node leaves its process id."""
        return self.state_dir / "node.pid"


def load(path: Path) -> NodeConfig:
    """Read the settings in ``path``.

    Raises:
        NotFound: there is no such file.
        Invalid: it is no YAML, or a field is wrong; ``field`` names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"there is no node configuration {str(path)!r}", code="config-missing", hint="Name it with --config."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {str(path)!r}: {error}", code="config-unreadable") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise Invalid(f"{str(path)!r} is no YAML{where}: {problem}", code="config-invalid") from error
    if not isinstance(data, dict):
        raise Invalid(
            f"{str(path)!r} holds no settings; it must be a mapping of names to values", code="config-invalid"
        )
    try:
        return NodeConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise Invalid(
            f"{str(path)!r}: {field}: {problem}",
            code="config-invalid",
            field=field,
            hint="Correct this setting and run the command again.",
        ) from error
