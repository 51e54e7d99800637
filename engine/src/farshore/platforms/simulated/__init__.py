"""Platform ``simulated``: the machines of a provider that is a program, for tests of scale and faults only.

Settings (``platform:`` in a node's file):

``socket``
    where the provider answers: ``python -m farshore.platforms.simulated.provider SETTINGS.json``, a process of its own
    that outlives nodes and control planes, as a real one does.
``root``
    folder of disks, points and manifests, kept as the platform ``file`` keeps them.

A guest here boots after a drawn time and then says ``ready`` on its console.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from farshore.errors import Invalid
from farshore.model.machine import PoolFacts
from farshore.platforms.simulated.api import SocketApi
from farshore.platforms.simulated.compute import SimulatedCompute

__all__ = ["SimulatedCompute", "open_compute"]


def open_compute(config: Mapping[str, Any], usage: Callable[[], PoolFacts]) -> SimulatedCompute:
    """Return the machines of the provider that ``config`` names. It need not answer yet.

    Raises:
        Invalid: ``socket`` is missing.
    """
    path = config.get("socket")
    if not isinstance(path, (str, Path)) or not Path(path).is_absolute():
        raise Invalid("platform.socket has to be an absolute path", code="platform-setting", field="platform.socket")
    return SimulatedCompute(SocketApi(Path(path), str(config.get("caller", ""))), usage)
