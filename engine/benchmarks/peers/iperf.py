"""iperf3: what the link itself carries, with the same number of flows and the same congestion control."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.links import Place
from benchmarks.peers.base import PORT, environment, lacking
from benchmarks.processes import Running, listening

_ALLOWED: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@dataclass(frozen=True, slots=True)
class LinkRate:
    """What the receiver got, in bytes of payload per second; ``steady`` without the first fifth of the time."""

    rate: float
    steady: float
    flows: int
    seconds: float
    congestion_control: str

    def row(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "mib_per_s": round(self.rate / (1 << 20), 1),
            "steady_mib_per_s": round(self.steady / (1 << 20), 1),
            "flows": self.flows,
            "seconds": round(self.seconds, 1),
            "congestion_control": self.congestion_control,
        }


class Iperf:
    """Measures from the source's end to the target's."""

    name = "iperf3"

    def missing(self) -> str | None:
        """Tell whether it is there."""
        return lacking("iperf3")

    @staticmethod
    def controls() -> list[str]:
        """Return the congestion controls that are worth a try and that the kernel has."""
        return [name for name in ("cubic", "bbr") if name in _ALLOWED.read_text().split()]

    def measure(self, place: Place, folder: Path, *, flows: int, seconds: float, control: str) -> LinkRate:
        """Send for about ``seconds`` over ``flows`` connections."""
        host = place.address("target")
        whole = max(2, math.ceil(seconds))
        server = ["iperf3", "-s", "-1", "-B", host, "-p", str(PORT), "-J"]
        client = ["iperf3", "-c", host, "-p", str(PORT), "-P", str(flows), "-t", str(whole), "-C", control]
        log = folder / "iperf-server.log"
        with Running(place.argv("target", server), log, env=environment()) as far:
            listening(far, PORT)
            with Running(place.argv("source", client), folder / "iperf.log", env=environment()) as near:
                near.wait(whole + 30)
            far.wait(30)
        found = json.loads(log.read_text())  # the receiver's, since a sender counts what it has only handed over
        received = found["end"]["sum_received"]
        late = [one["sum"] for one in found["intervals"][whole // 5 :]]
        steady = sum(one["bytes"] for one in late) / sum(one["seconds"] for one in late)
        return LinkRate(received["bits_per_second"] / 8, steady, flows, float(received["seconds"]), control)
