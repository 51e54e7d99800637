"""Modules of the simulation run in a process of their own, where names hash the same every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def python(*arguments: str, deadline_s: float = 1100) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with these arguments."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
