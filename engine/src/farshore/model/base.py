"""What all schemas have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints

from farshore.units import parse_duration, parse_rate, parse_size


class Model(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Report(BaseModel):
    """A frozen value read from a peer, which may be newer than this code: unknown keys are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


#: A name that people give: safe as a file name, in an URL and in a hypervisor's object names.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
#: An identifier that Farshore makes (``run-1f3a...``), or a platform's own (a UUID).
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
#: Seconds; accepts ``"15m"``, ``"30s"`` or a number.
Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(float)]
#: Bytes; accepts ``"8MiB"`` or a number.
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(int)]
#: Bytes per second, 8 KiB/s at least; accepts ``"200 Mbit/s"``, ``"25 MiB/s"`` or a number.
Rate = Annotated[int, BeforeValidator(parse_rate), PlainSerializer(int), Field(ge=8192)]
#: A port number.
Port = Annotated[int, Field(ge=1, le=65535)]
