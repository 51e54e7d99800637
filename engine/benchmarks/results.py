"""Figures: what was reached of what was asked, kept in one JSON file by id."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.processes import ProgramFailed, ask

_VERSIONS: Final = {
    "rsync": "--version",
    "nbdcopy": "--version",
    "nbdkit": "--version",
    "qemu-img": "--version",
    "iperf3": "--version",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One number beside its bound. ``value`` is None where it could not be measured, which is not ok."""

    name: str
    value: float | None
    relation: Literal[">=", "<="]
    bound: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bound is kept."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.relation == ">=" else self.value <= self.bound

    @property
    def reach(self) -> str:
        """The bound in words."""
        return f"{'≥' if self.relation == '>=' else '≤'} {self.bound:g} {self.unit}".strip()

    def row(self) -> dict[str, Any]:
        """Return it for JSON."""
        value = None if self.value is None else round(self.value, 4)
        return {"name": self.name, "value": value, "unit": self.unit, "reach": self.reach, "ok": self.ok}


@dataclass(slots=True)
class Figure:
    """A row: the first check is its value, all of them have to be kept."""

    figure_id: str
    checks: list[Check] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def row(self, size: str) -> dict[str, Any]:
        """Return it for JSON, with the command that measures it again."""
        head = self.checks[0].row() if self.checks else {"value": None, "unit": "", "reach": ""}
        return {
            "value": head["value"],
            "unit": head["unit"],
            "reach": "; ".join(f"{check.name} {check.reach}" for check in self.checks),
            "ok": self.error is None and bool(self.checks) and all(check.ok for check in self.checks),
            "command": f"make figures ONLY={self.figure_id}" + ("" if size == "full" else f" SIZE={size}"),
            "size": size,
            "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "checks": [check.row() for check in self.checks],
            **({"error": self.error} if self.error else {}),
            "details": self.details,
        }


def merge(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put rows into the file, in place of those with their ids, and return all that it holds then."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found.update(rows)
    write(path, dict(sorted(found.items())))
    return found


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def machine() -> dict[str, Any]:
    """Return what the numbers belong to."""
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), 0)
    return {
        "processors": os.cpu_count(),
        "model": models[0] if models else platform.machine(),
        "memory_gib": round(memory / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return what the tools call themselves; those that are not installed are left out."""
    found = {}
    for program, option in _VERSIONS.items():
        with contextlib.suppress(ProgramFailed, OSError):
            found[program] = ask([program, option]).strip().splitlines()[0]
    return found


def _lines(path: str) -> Iterable[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
