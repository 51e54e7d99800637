"""Print build/demo.json as tables: figures.py FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Return ``rows`` under ``head``; numbers to the right."""
    cells = [head, *([f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  " + "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in cells
    )


def main(path: str) -> None:
    """Print the document at ``path``."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    print(found["note"])
    print("\nphases")
    print(table(["phase", "seconds"], [[one["name"], float(one["seconds"])] for one in found["phases"]]))
    print("\ncycles of replication")
    rows = [
        [one["checkpoint_id"], one["mode"], one["moved_bytes"] / MIB, one["disk_bytes"] / MIB, float(one["seconds"])]
        for one in found["cycles"]
    ]
    print(table(["checkpoint", "mode", "moved MiB", "of MiB", "seconds"], rows))
    print("\nmachines")
    rows = [
        [one["name"], run, one["rpo_s"], one["rto_s"], "green" if all(p["green"] for p in one["probes"]) else "RED"]
        for run in ("drill", "failover")
        for one in found[run]["machines"]
    ]
    print(table(["machine", "run", "rpo s", "rto s", "probes"], rows))
    print(f"\nreport     {found['failover']['report_url']}")


if __name__ == "__main__":
    main(sys.argv[1])
