"""From a site's settings to its platform. Platform packages are imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from farshore.errors import Invalid
from farshore.platforms.contract import Platform

__all__ = ["Platform", "open_platform"]


def open_platform(config: Mapping[str, Any], part: str = "") -> Platform:
    """Return the platform that ``config`` describes: ``{type: file, root: DIR}`` or ``{type: kvm, uri: ..., ...}``.

    ``part`` is the name of the process that opens it, where a node has several: each ends only what it has started.

    Raises:
        Invalid: the type is unknown or a setting is missing; ``field`` names it.
    """
    kind = config.get("type")
    if kind == "file":
        root = config.get("root")
        if not isinstance(root, (str, Path)) or not Path(root).is_absolute():
            raise Invalid("platform.root has to be an absolute path", code="platform-setting", field="platform.root")
        from farshore.platforms.file import open_file

        return open_file(Path(root))
    if kind == "kvm":
        return cast("Platform", import_module("farshore.platforms.kvm").open_kvm(config, part))
    raise Invalid(f"platform.type: {kind!r} is unknown; write file or kvm", code="platform-type", field="platform.type")
