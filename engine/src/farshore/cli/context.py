"""What every command is given: the global options, made into a client only when one is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from farshore.cli.output import Output

if TYPE_CHECKING:
    import typer

    from farshore.cli.remote.client import Client
    from farshore.cli.settings import Endpoint


@dataclass
class Shell:
    """The global options of one invocation."""

    out: Output = field(default_factory=Output)
    url: str | None = None
    token_file: Path | None = None
    ca_path: Path | None = None

    @cached_property
    def endpoint(self) -> Endpoint:
        """The control plane that the options, the environment or the env file name."""
        from farshore.cli.settings import resolve

        return resolve(self.url, self.token_file, self.ca_path)

    def page(self, path: str) -> str:
        """Return the address of what the control plane names by its path."""
        return f"{self.endpoint.url}{path}" if path.startswith("/") else path

    @cached_property
    def client(self) -> Client:
        """The client for it."""
        from farshore.cli.remote.client import Client

        return Client(self.endpoint)


def shell(ctx: typer.Context) -> Shell:
    """Return the options of this invocation, defaults where a command is run on its own."""
    if not isinstance(ctx.obj, Shell):
        ctx.obj = Shell()
    return ctx.obj
