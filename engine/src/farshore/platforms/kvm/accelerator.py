"""What runs the machines that we make: KVM only where a guest has proved it.

That /dev/kvm opens proves nothing: inside some hypervisors an ordinary guest kernel never reaches user space.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, Final, Literal

from farshore import durable
from farshore.errors import Invalid

Accelerator = Literal["tcg", "kvm"]
SETTINGS: Final = ("auto", "tcg", "kvm")


def note(path: Path, accelerator: Accelerator) -> None:
    """Keep what a probe guest has shown; it holds for this kernel."""
    durable.write_json(path, {"kernel": platform.release(), "accelerator": accelerator})


def choose(setting: Any, path: Path) -> Accelerator:
    """Return what to use: as the setting says; for ``auto`` what was noted at ``path``, else ``tcg``.

    Raises:
        Invalid: no such setting.
    """
    if setting not in SETTINGS:
        raise Invalid(
            f"platform.accelerator: {setting!r} is unknown; write auto, tcg or kvm", field="platform.accelerator"
        )
    if setting != "auto":
        return "kvm" if setting == "kvm" else "tcg"
    try:
        kept = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return "tcg"
    return "kvm" if kept == {"kernel": platform.release(), "accelerator": "kvm"} else "tcg"
