"""Probes: what proves that a recovered machine serves. A bare connect proves nothing and is not offered."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from farshore.model.base import Duration, Model, Name, Port
from farshore.model.hooks import BundlePath, SecretName, Tasks, Variable

#: A name or address that a probe goes to instead of the machine's own address.
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?$")]
#: As OpenSSH prints it.
Fingerprint = Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
_PATH = re.compile(r"(/|[A-Za-z]:\\).+")


class BaseProbe(Model):
    """What all probes have in common."""

    timeout: Duration = Field(120.0, gt=0, description="give up after this long, all tries together")
    interval: Duration = Field(2.0, gt=0, description="pause between the beginnings of two tries")
    retries: int | None = Field(
        None, ge=0, description="tries after the first one; default: as many as the timeout allows"
    )


class NetworkProbe(BaseProbe):
    """A probe that goes over the network, to the machine's own address unless ``host`` says where.

    ``host`` has to resolve to an address of the machine: a name that still leads to the old site proves nothing.
    """

    host: Host | None = Field(None, description="name that is looked up; it has to lead to this very machine")


class TcpProbe(NetworkProbe):
    """Green when the port sends a banner that holds ``banner``. A bare connect proves nothing."""

    type: Literal["tcp"]
    port: Port
    banner: str = Field(min_length=1)


class HttpProbe(NetworkProbe):
    """Green when the answer has this status and its body holds ``contains``."""

    type: Literal["http"]
    port: Port = 80
    path: str = Field("/", pattern=r"^/[^\s]*$")
    status: int = Field(200, ge=100, le=599)
    contains: str = ""


class ConsoleProbe(BaseProbe):
    """Green when the machine's console text holds ``contains``."""

    type: Literal["console"]
    contains: str = Field(min_length=1)


class _Command(NetworkProbe):
    user: str = Field(min_length=1, max_length=256)
    password: Name | None = Field(None, description="name of a secret of the recovery node; never the value")
    command: str = Field(min_length=1, max_length=4096)
    exit: int = Field(0, description="exit status that is expected")
    contains: str = Field("", description="what its output has to hold")


class SshProbe(_Command):
    """Green when a command that is run by SSH ends with the expected status and its output holds ``contains``.

    ``key`` and ``password`` name secrets that lie on the recovery node. Without ``host_key`` any key of the guest is
    taken, and noted in the evidence.
    """

    type: Literal["ssh"]
    port: Port = 22
    key: Name | None = Field(None, description="name of a secret of the recovery node that holds a private key")
    host_key: Fingerprint | None = Field(None, description="fingerprint that the guest has to show, SHA256:...")

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        if (self.key is None) == (self.password is None):
            raise ValueError("name one secret of the recovery node: key or password")
        return self


class WinRmProbe(_Command):
    """Green when a command that is run by WinRM ends with the expected status and its output holds ``contains``.

    ``command`` is one of cmd.exe; PowerShell is called by it: ``powershell -NoProfile -Command "..."``.
    """

    type: Literal["winrm"]
    port: Port = 5986
    tls: bool = Field(default=True, description="HTTPS; without it messages are encrypted by the authentication")
    validate_certs: bool = Field(
        default=True, description="whether the certificate has to be known and to carry the name that is connected to"
    )
    auth: Literal["negotiate", "ntlm", "basic"] = "negotiate"

    @model_validator(mode="after")
    def _keeps_its_secret(self) -> Self:
        if self.password is None:
            raise ValueError("password: name a secret of the recovery node")
        if self.auth == "basic" and not self.tls:
            raise ValueError("auth: basic without tls sends the password to whoever listens; set tls: true")
        return self


class AnsibleProbe(BaseProbe):
    """Green when a file of Ansible tasks ends well. It lies beside the plan, with those of the hooks.

    ``on``: the tasks are played on the recovery node, or on the machine at its own address, by SSH unless ``vars`` say
    otherwise.
    """

    type: Literal["ansible"]
    file: BundlePath = Field(description="file of Ansible tasks, relative to the folder of the plan's file")
    on: Literal["node", "machine"] = "node"
    secrets: tuple[SecretName, ...] = Field((), description="secrets of the node that the tasks may see, and no others")
    vars: dict[Variable, Any] = Field({}, description="variables for the tasks")

    @model_validator(mode="after")
    def _are_tasks(self) -> Self:
        Tasks(file=self.file, secrets=self.secrets, vars=self.vars)
        return self


class GuestAgentProbe(BaseProbe):
    """Green when the guest agent answers, and the command that it runs, if one is named, ends as expected."""

    type: Literal["guest_agent"]
    command: tuple[str, ...] = Field((), description="program by its whole path, and its arguments; empty: only ask")
    exit: int = Field(0, description="exit status that is expected")
    contains: str = Field("", description="what its output has to hold")

    @model_validator(mode="after")
    def _names_a_program(self) -> Self:
        if self.command and not _PATH.fullmatch(self.command[0]):
            raise ValueError(f"command: {self.command[0]!r} is no whole path; the agent has no search path")
        if not self.command and (self.contains or self.exit):
            raise ValueError("contains and exit belong to a command; name one")
        return self
