"""What a node of a site in AWS is told, and what of it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from farshore.errors import Invalid
from farshore.model.base import Duration, Model
from farshore.platforms.aws import policy
from farshore.platforms.aws.pacing import RATES
from farshore.platforms.aws.prices import AMOUNTS

#: Services that are talked to, as boto3 names them.
SERVICES: Final = ("ebs", "ec2", "iam", "kms", "s3", "service-quotas", "ssm", "sts")
#: What people write where keys do not belong.
_KEYS: Final = frozenset({"access_key", "access_key_id", "aws_access_key_id", "aws_secret_access_key", "secret_key"})

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^/@\s]+(/[^@\s]*)?$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/")]


class RoleSettings(Model):
    """A role that is assumed. With ``web_identity_token_file`` no other credentials are needed."""

    arn: Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/.+$")]
    external_id: Annotated[str, StringConstraints(min_length=2, max_length=1224)] | None = None
    web_identity_token_file: AbsolutePath | None = None
    session_name: Annotated[str, StringConstraints(pattern=r"^[\w+=,.@-]{2,64}$")] = "farshore"

    @model_validator(mode="after")
    def _one_way(self) -> RoleSettings:
        if self.external_id is not None and self.web_identity_token_file is not None:
            raise ValueError("a web identity takes no external_id; remove one of the two")
        return self


class AwsSettings(Model):
    """The settings of a site in AWS.

    Attributes:
        region: where snapshots and machines are.
        zone: the availability zone in which volumes and machines are made.
        bucket: of the manifests; ``prefix`` is put before their keys.
        scratch: folder for journals of drafts, on a local file system that survives restarts.
        profile: of the shared configuration of the user that the node runs as.
        role: assumed with the credentials of ``profile`` or of the default chain.
        endpoint: one address for all services; ``endpoints`` by service (VPC endpoints).
        target: how replicas are written: ``ebs-direct`` from anywhere, block by block, or ``attached``, to volumes at
            the instance that the node runs on. Points are the same, and the setting may be changed at any time.
        instance: the id of that instance; by default, what its hardware says.
        devices: folder of the links to NVMe volumes by their ids.
        kms_key: encrypts new snapshots; those that grow on another have that one's key.
        instance_families: machines are chosen from these types.
        machines: filters of EC2 that limit the inventory, such as ``{"tag:backup": ["yes"]}``.
        security_groups: of recovered machines; the default group of their network where none is named.
        key_pair, instance_profile: of recovered machines, never of rehearsed ones.
        probe_helper: the instance that tries probes in networks of drills, by its id, or ``tagged``: by its tag
            ``farshore:helper``, which it has in any case. Empty: nobody gets into them.
        licence_images: by what a machine is billed as (``Windows``), the image whose licence a recovered one gets.
        power_s: how long a machine may take to start or to be powered off.
        status_checks_s: how long a started machine may take to pass EC2's status checks; 0: that is not waited for.
        api_rates: calls per second of operations that the account may make, where a quota is not the service's default.
        prices: what differs from the list prices of :mod:`farshore.platforms.aws.prices`, for estimates.
        poll_s: the pace at which states are asked for while something is waited for.
        completion_s: how long a snapshot may take until it is whole.
    """

    type: Literal["aws"] = "aws"
    region: Annotated[str, StringConstraints(pattern=policy.REGION)]
    zone: str
    bucket: Annotated[str, StringConstraints(pattern=policy.BUCKET)]
    prefix: Annotated[str, StringConstraints(pattern=policy.PREFIX)] = "farshore"
    scratch: AbsolutePath
    target: Literal["ebs-direct", "attached"] = "ebs-direct"
    instance: Annotated[str, StringConstraints(pattern=r"^(i-[0-9a-f]+)?$")] = ""
    devices: AbsolutePath = "/dev/disk/by-id"
    profile: Annotated[str, StringConstraints(min_length=1)] | None = None
    role: RoleSettings | None = None
    endpoint: Url | None = None
    endpoints: dict[str, Url] = {}
    kms_key: (
        Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/.+$")] | None
    ) = None
    instance_families: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")], ...] = Field(
        ("t3", "m6i", "c6i", "r6i"), min_length=1
    )
    machines: dict[Annotated[str, StringConstraints(min_length=1)], tuple[str, ...]] = {}
    security_groups: tuple[Annotated[str, StringConstraints(pattern=r"^sg-[0-9a-z]+$")], ...] = ()
    key_pair: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    instance_profile: Annotated[str, StringConstraints(pattern=r"^[\w+=,.@-]{1,128}$")] | None = None
    probe_helper: Annotated[str, StringConstraints(pattern=r"^(|tagged|i-[0-9a-f]+)$")] = ""
    licence_images: dict[str, Annotated[str, StringConstraints(pattern=r"^ami-[0-9a-z]+$")]] = {}
    api_rates: dict[str, Annotated[float, Field(gt=0)]] = {}
    prices: dict[str, Annotated[float, Field(ge=0)]] = {}
    poll_s: Annotated[Duration, Field(gt=0, le=300)] = 5.0
    power_s: Annotated[Duration, Field(gt=0)] = 900.0
    status_checks_s: Annotated[Duration, Field(ge=0)] = 600.0
    completion_s: Annotated[Duration, Field(gt=0)] = 12 * 3600.0

    @field_validator("prefix")
    @classmethod
    def _plain(cls, value: str) -> str:
        if any(part in {"", ".", ".."} for part in value.split("/")):
            raise ValueError("write plain names with / between them")
        return value

    @field_validator("endpoints")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for service in value:
            if service not in SERVICES:
                raise ValueError(f"{service!r} is no service; write one of {', '.join(SERVICES)}")
        return value

    @field_validator("api_rates")
    @classmethod
    def _counted(cls, value: dict[str, float]) -> dict[str, float]:
        for operation in value:
            if operation not in RATES:
                raise ValueError(f"{operation!r} is not counted; write one of {', '.join(RATES)}")
        return value

    @field_validator("prices")
    @classmethod
    def _charged(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in AMOUNTS:
                raise ValueError(f"{name!r} has no price; write one of {', '.join(AMOUNTS)}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> AwsSettings:
        if not self.zone.startswith(self.region) or self.zone == self.region:
            raise ValueError(f"zone {self.zone!r} is not in region {self.region}; zones are named {self.region}a")
        if self.kms_key is not None and self.kms_key.split(":")[3] != self.region:
            raise ValueError(
                f"kms_key is of region {self.kms_key.split(':')[3]}; snapshots need a key of {self.region}"
            )
        return self

    def endpoint_of(self, service: str) -> str | None:
        """Return the address of a service; None is the provider's own."""
        return self.endpoints.get(service, self.endpoint)

    @property
    def folder(self) -> Path:
        """The scratch folder."""
        return Path(self.scratch)


def read(config: Mapping[str, Any]) -> AwsSettings:
    """Return the settings.

    Raises:
        Invalid: one is wrong or missing; ``field`` names it.
    """
    for key in config:
        if key in _KEYS:
            raise Invalid(
                f"platform.{key}: keys do not belong into a node's file",
                code="platform-setting",
                field=f"platform.{key}",
                hint="Use profile, role, or an instance profile; see docs/internals/aws.md.",
            )
    try:
        return AwsSettings.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        named = [str(part) for part in first["loc"]]
        if not named:  # a check of two settings together begins with the name of the wrong one
            named = [message.split(" ", 1)[0]]
        field = ".".join(["platform", *named])
        raise Invalid(f"{field}: {message}", code="platform-setting", field=field) from error
