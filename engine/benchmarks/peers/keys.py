"""Keys of two nodes, made by the tool's own command, used by Farshore and by the bare pipe."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.processes import ask


def farshore() -> str:
    """Return the command line's program."""
    return str(Path(sys.executable).with_name("farshore"))


def node_keys(folder: Path) -> Path:
    """Return a folder with ca.pem, source.pem, source.key, target.pem and target.key."""
    keys = folder / "keys"
    if not keys.exists():
        ask([farshore(), "linktest", "keys", str(keys)])
    return keys
