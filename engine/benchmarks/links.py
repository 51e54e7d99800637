"""Where two ends run: a loopback of their own, or two network namespaces with a wide-area link between them.

Nothing here touches the machine's own network. ``wanem`` (tests/tools/wanem) makes the link; scripts/setup.sh compiles
it. Namespaces that a killed run has left are removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from benchmarks.ceiling import payload_rate
from benchmarks.processes import ProgramFailed, Running, ask

End = Literal["source", "target"]
ENDS: Final[tuple[End, End]] = ("source", "target")

ROOT: Final = Path(__file__).parents[2]
WANEM: Final = ROOT / ".cache/wanem/wanem"
_PREFIX: Final = "farshore-bench"
_NAMESPACES: Final = Path("/run/netns")


class Place(Protocol):
    """Where the two ends run. A context manager: made on entry, gone afterwards."""

    name: str

    def __enter__(self) -> Self:
        """Make it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it."""

    def argv(self, end: End, command: Sequence[str]) -> list[str]:
        """Return the command that runs ``command`` at one end."""

    def address(self, end: End) -> str:
        """Return an end's IPv4 address."""

    @property
    def ceiling(self) -> float | None:
        """Bytes of TCP payload per second at the most; None where nothing limits it."""

    def wire_bytes(self) -> int | None:
        """Bytes that have crossed in both directions with IP headers; None where nobody counts."""


class Loopback:
    """One namespace with its own loopback; both ends are in it."""

    name = "loopback"
    ceiling: float | None = None

    def __init__(self) -> None:
        self._space = f"{_PREFIX}-{os.getpid()}-l"

    def __enter__(self) -> Self:
        remove_stale()
        ask(["ip", "netns", "add", self._space])
        ask(["ip", "-n", self._space, "link", "set", "lo", "up"])
        return self

    def __exit__(self, *_: object) -> None:
        ask(["ip", "netns", "del", self._space])

    def argv(self, end: End, command: Sequence[str]) -> list[str]:
        """Return the command that runs ``command`` in the namespace."""
        del end
        return ["ip", "netns", "exec", self._space, *command]

    def address(self, end: End) -> str:
        """Return the loopback's address."""
        del end
        return "127.0.0.1"

    def wire_bytes(self) -> int | None:
        """Nobody counts."""
        return None


@dataclass(frozen=True, slots=True)
class Shape:
    """A link as wanem makes it. Rate in bits of the wire per second (0: none), loss as a share of segments."""

    rtt_ms: float
    rate_bit_s: float
    loss: float = 0.0

    @property
    def name(self) -> str:
        """What people call it: ``80 ms, 1 Gbit/s, 0.1 % loss``."""
        words = [f"{self.rtt_ms:g} ms"]
        if self.rate_bit_s:
            giga = self.rate_bit_s >= 1e9
            words.append(f"{self.rate_bit_s / (1e9 if giga else 1e6):g} {'Gbit/s' if giga else 'Mbit/s'}")
        if self.loss:
            words.append(f"{self.loss:.1%} loss")
        return ", ".join(words)

    def options(self) -> list[str]:
        """Return wanem's options."""
        return [
            *("--rtt", f"{self.rtt_ms}ms"),
            *("--rate", f"{self.rate_bit_s:.0f}bit"),
            *("--loss", f"{self.loss * 100:g}%"),
        ]


class Wan:
    """Two namespaces and a link between them; the source has 10.77.0.1, the target 10.77.0.2."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.name = shape.name
        self.shape = shape
        self._folder = folder
        self._spaces = {end: f"{_PREFIX}-{os.getpid()}-{end[0]}" for end in ("source", "target")}
        self._link: Running | None = None

    def __enter__(self) -> Self:
        if not WANEM.exists():
            raise ProgramFailed(f"{WANEM} is not there; first: scripts/setup.sh bench")
        remove_stale()
        up = [*_before_others(), str(WANEM), "up", "-q", *self.shape.options(), *self._pair]
        self._link = Running(up, self._folder / "wanem.log")
        deadline = time.monotonic() + 20
        while True:
            try:
                self.counters()
            except ProgramFailed as error:
                if time.monotonic() > deadline or self._link.said():
                    said = self._link.said()
                    self._link.stop()
                    raise ProgramFailed(f"the link did not come up: {said or error}") from error
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        if self._link:
            self._link.stop()

    @property
    def _pair(self) -> list[str]:
        return [self._spaces["source"], self._spaces["target"]]

    @property
    def ceiling(self) -> float | None:
        """Bytes of TCP payload per second at the most."""
        return payload_rate(self.shape.rate_bit_s) if self.shape.rate_bit_s else None

    def argv(self, end: End, command: Sequence[str]) -> list[str]:
        """Return the command that runs ``command`` in an end's namespace."""
        return ["ip", "netns", "exec", self._spaces[end], *command]

    def address(self, end: End) -> str:
        """Return an end's address on the link."""
        return "10.77.0.1" if end == "source" else "10.77.0.2"

    def set(self, *options: str) -> None:
        """Change the link while it is up: ``set("--loss", "100%")``."""
        ask([str(WANEM), "set", "-q", *options, *self._pair])

    def counters(self) -> dict[End, dict[str, float]]:
        """Return what the link says of itself, by the end that sends."""
        lines = ask([str(WANEM), "stat", *self._pair]).splitlines()
        source, target = ({key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", line)} for line in lines)
        return {"source": source, "target": target}

    def wire_bytes(self) -> int | None:
        """Bytes that have crossed in both directions with IP headers."""
        return int(sum(one["bytes"] for one in self.counters().values()))


@cache
def _before_others() -> tuple[str, ...]:
    """Return what runs a program before the ends: a real link does not wait for their processors."""
    first = ("chrt", "--fifo", "1")
    try:
        ask([*first, "true"])
    except (ProgramFailed, OSError):  # real-time scheduling is not for everybody
        return ("nice", "-n", "-15")
    return first


def remove_stale() -> None:
    """Remove the namespaces of runs whose process is gone."""
    for path in _NAMESPACES.glob(f"{_PREFIX}-*") if _NAMESPACES.is_dir() else ():
        owner = path.name.removeprefix(f"{_PREFIX}-").split("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            with contextlib.suppress(ProgramFailed):
                ask(["ip", "netns", "del", path.name])
