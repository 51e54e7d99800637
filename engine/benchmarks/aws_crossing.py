"""The figure ``aws-crossing``: a guest of the laboratory goes from KVM to AWS, and comes back.

Through a real control plane and two real nodes; AWS is its double, whose instances run what their volumes hold.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from doubles.crossing import crossing, there_and_back

from benchmarks.links import ROOT
from benchmarks.results import Check, Figure

#: Disks of the guest, compared at each of two stops; a disk that differs ends the measurement.
_COMPARED, _STOPS = 4, 2


def figure(say: Callable[[str], None]) -> Figure:
    """Measure it; takes some minutes under emulation."""
    row = Figure("aws-crossing")
    folder = Path(tempfile.mkdtemp(prefix="fsx-"))  # sockets need a short path
    try:
        with crossing(folder, ROOT / ".cache/lab") as made:
            seen = there_and_back(made)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"{seen['compared']} images are identical, {seen['back_moved_bytes'] >> 20} MiB crossed on the way back")
    row.checks += [
        Check("identical images", seen["compared"], ">=", _COMPARED),
        Check("probes green", seen["green"], ">=", _STOPS),
        Check("sent on the way back", seen["back_moved_bytes"] / seen["disk_bytes"], "<=", 0.1, "of the disks"),
    ]
    row.details |= seen
    return row
