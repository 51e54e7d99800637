"""From a site's settings to its platform. Platform packages are imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from farshore.errors import Invalid
from farshore.platforms.contract import Platform

__all__ = ["Platform", "open_platform"]


def open_platform(config: Mapping[str, Any], part: str = "") -> Platform:
    """Return the platform that ``config`` describes: ``{type: file, root: DIR}`` or ``{type: kvm, uri: ..., ...}``.

    ``{type: aws, region: ..., ...}`` needs boto3. ``{type: simulated, root: DIR, socket: PATH}`` keeps disks as
    ``file`` does and has the machines of a provider that is a program: for tests of scale and faults.
    ``part`` is the name of the process that opens it, where a node has several: each ends only what it has started.

    Raises:
        Invalid: the type is unknown or a setting is missing; ``field`` names it.
    """
    kind = config.get("type")
    if kind in {"file", "simulated"}:
        root = config.get("root")
        if not isinstance(root, (str, Path)) or not Path(root).is_absolute():
            raise Invalid("platform.root has to be an absolute path", code="platform-setting", field="platform.root")
        from farshore.platforms.file import open_file

        disks = open_file(Path(root))
        if kind == "file":
            return disks
        from farshore.platforms.simulated import open_compute

        compute = open_compute(config, disks.target.usage)
        return replace(disks, type="simulated", compute=compute, inventory=compute.inventory)
    if kind == "kvm":
        return cast("Platform", import_module("farshore.platforms.kvm").open_kvm(config, part))
    if kind == "aws":
        return cast("Platform", import_module("farshore.platforms.aws").open_aws(config, part))
    raise Invalid(
        f"platform.type: {kind!r} is unknown; write aws, file or kvm", code="platform-type", field="platform.type"
    )
