"""EC2 and EBS as a platform: snapshots as points, by the EBS direct APIs, without a machine in between.

Settings (``platform:`` in a node's file): see :class:`farshore.platforms.aws.settings.AwsSettings`. Credentials are
never settings: they come from boto3's default chain, a profile or a role.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from farshore import durable
from farshore.errors import Permanent

if TYPE_CHECKING:  # the policy is had with the standard library alone
    from farshore.platforms.contract import Platform

__all__ = ["open_aws"]


def open_aws(config: Mapping[str, Any], part: str = "") -> Platform:  # noqa: ARG001  nothing is started
    """Open the platform. The account is asked at first use.

    ``part``: see :func:`farshore.platforms.registry.open_platform`.

    Raises:
        Invalid: a setting is wrong; ``field`` names it.
        Permanent: boto3 is not installed.
    """
    if find_spec("boto3") is None:
        raise Permanent(
            "boto3 is not installed on this node",
            code="boto3-missing",
            hint="Install farshore[aws] into the node's environment.",
        )
    from farshore.platforms.aws import inventory, retiring, settings
    from farshore.platforms.aws.account import Account
    from farshore.platforms.aws.attached import AttachedTarget
    from farshore.platforms.aws.compute import AwsCompute
    from farshore.platforms.aws.manifests import S3Manifests
    from farshore.platforms.aws.seeds import Seeds
    from farshore.platforms.aws.source import AwsSource
    from farshore.platforms.aws.target import AwsTarget
    from farshore.platforms.aws.types import Types
    from farshore.platforms.contract import Boots, Platform

    account = Account(settings.read(config))
    given = account.settings
    durable.make_dir(given.folder)
    types = Types(account)
    source = AwsSource(
        account,
        lambda machine_id: inventory.machine_facts(account, types, [inventory.instance(account, machine_id)])[0],
    )
    target = AttachedTarget(account) if given.target == "attached" else AwsTarget(account)
    compute = AwsCompute(account, types, target.usage)
    return Platform(
        type="aws",
        source=source,
        target=target,
        manifests=S3Manifests(account),
        inventory=compute.inventory,
        compute=compute,
        adopt=Seeds(account, target, compute.facts).adopt,
        traces=source.traces,
        set_rate=account.pacing.set,
        retire=partial(retiring.remove, account),
        boots=Boots(compute.booted, given.poll_s, given.status_checks_s) if given.status_checks_s else None,
        reach=compute.reach,
    )
