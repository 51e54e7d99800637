"""The figures that the data path is held to, each measured by a function of its own.

All copies are compared bit by bit with their sources; see :mod:`benchmarks.workshop`. Rates are bytes of data per
second from the first attempt to connect until the copy is flushed, verified and published, as ``farshore linktest``
counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from benchmarks import limited, lost, recovery, rehearsal, wayback
from benchmarks.ceiling import jain, steady_rate
from benchmarks.images import Changed, Disk, Full
from benchmarks.links import ENDS, End, Loopback, Place, Shape, Wan
from benchmarks.peers.base import Outcome, Peer
from benchmarks.peers.farshore import Farshore
from benchmarks.peers.iperf import Iperf, LinkRate
from benchmarks.peers.nbd import Nbdcopy
from benchmarks.peers.pipe import Pipe
from benchmarks.peers.rsync import RsyncDaemon, RsyncSsh
from benchmarks.results import Check, Figure
from benchmarks.stalled import Stalled, seconds_of
from benchmarks.workshop import Workshop

MIB: Final = 1 << 20
GBIT: Final = 1e9
#: Farshore chooses the number of connections itself.
AUTO: Final = 0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is moved. ``quick`` is for trying; the bounds belong to ``full``."""

    name: str
    full_mib: int
    loopback_mib: int
    disk_mib: int
    fragments_mib: int
    memory_mib: int
    peer_mib: int
    rounds: int
    loopback_rounds: int
    kills: int
    stall_mib: int


SIZES: Final = {
    one.name: one
    for one in (
        # In memory a copy has to end within a second or two: then a host begins to take back the pages found for it.
        Size("full", 4096, 512, 48, 4096, 960, 1024, 3, 9, 30, 160),
        Size("quick", 512, 512, 8, 512, 320, 256, 1, 3, 4, 48),
    )
}


def _median(outcomes: Sequence[Outcome], of: Callable[[Outcome], float]) -> float:
    return statistics.median(of(one) for one in outcomes)


def _told(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for the details: what Farshore reports without its samples."""
    row = outcome.row()
    if "detail" in row:
        row["detail"] = {key: value for key, value in row["detail"].items() if key not in {"samples", "disks"}}
    return row


def _steady(outcome: Outcome) -> float | None:
    return steady_rate(outcome.detail.get("samples", []))


def _ceiling_of(place: Place) -> float:
    if place.ceiling is None:
        raise ValueError(f"{place.name} has no rate")
    return place.ceiling


class _Missing:
    """Collects what could not be compared with."""

    def __init__(self, shop: Workshop, figure: Figure) -> None:
        self._shop = shop
        self._figure = figure

    def there(self, peer: Peer | Iperf) -> bool:
        """Tell whether a tool can run; say so where it can not."""
        reason = peer.missing()
        if reason:
            self._figure.details.setdefault("not_measured", {})[peer.name] = reason
            self._shop.say(f"{peer.name} is not measured: {reason}")
        return reason is None


def full_copy(figure_id: str, shape: Shape, bound: float, steady: float | None = None) -> Measured:
    """A full copy over a link, beside its payload ceiling."""

    def measure(shop: Workshop, size: Size) -> Figure:
        figure = Figure(figure_id)
        disk, runs, links = shop.disk(Full(size.full_mib * MIB)), list[Outcome](), list[LinkRate]()
        with Wan(shape, shop.run) as place:
            iperf = _Missing(shop, figure).there(Iperf())
            for _ in range(size.rounds):
                runs.append(shop.copy(Farshore(), place, [disk], connections=AUTO))
                if iperf:
                    links.append(_link(shop, place, runs[-1]))
            ceiling = _ceiling_of(place)
        figure.checks.append(
            Check("rate", _median(runs, lambda one: one.own_rate) / ceiling, ">=", bound, "of the payload ceiling")
        )
        if steady is not None:
            rates = [rate for one in runs if (rate := _steady(one)) is not None]
            value = statistics.median(rates) / ceiling if rates else None
            figure.checks.append(Check("steady state", value, ">=", steady, "of the payload ceiling"))
        figure.details |= _link_details(ceiling, runs, links)
        return figure

    return measure


def best_of(figure_id: str, shape: Shape) -> Measured:
    """A full copy over a link where no tool reaches the ceiling, beside the best of them."""

    def measure(shop: Workshop, size: Size) -> Figure:
        figure = Figure(figure_id)
        disk, smaller = shop.disk(Full(size.full_mib * MIB)), shop.disk(Full(size.peer_mib * MIB))
        runs, links, others = list[Outcome](), list[LinkRate](), list[Outcome]()
        with Wan(shape, shop.run) as place:
            missing = _Missing(shop, figure)
            iperf, nbdcopy = missing.there(Iperf()), missing.there(Nbdcopy(tls=False))
            for _ in range(size.rounds):
                runs.append(shop.copy(Farshore(), place, [disk], connections=AUTO))
                if iperf:
                    links += [_link(shop, place, runs[-1], control) for control in Iperf.controls()]
                if nbdcopy:
                    others.append(shop.copy(Nbdcopy(tls=False), place, [smaller], connections=_connections(runs[-1])))
            ceiling = _ceiling_of(place)
        rate = _median(runs, lambda one: one.own_rate)
        by_control = [[one for one in links if one.congestion_control == name] for name in Iperf.controls()]
        measured: list[Sequence[LinkRate | Outcome]] = [*by_control, others]
        rivals = [statistics.median(one.rate for one in found) for found in measured if found]
        best = max(rivals) if iperf and nbdcopy else None
        figure.checks.append(
            Check("rate", rate / best if best else None, ">=", 0.95, "of the better of iperf3 and nbdcopy")
        )
        figure.details |= _link_details(ceiling, runs, links)
        figure.details["share_of_shaped_rate"] = round(rate * 8 / shape.rate_bit_s, 4)
        figure.details["nbdcopy"] = [_told(one) for one in others]
        return figure

    return measure


def _link(shop: Workshop, place: Place, run: Outcome, control: str = "cubic") -> LinkRate:
    """Measure the link as long and with as many flows as the run had.

    A clean link is taken whole by CUBIC; where packets are lost, BBR has to be tried beside it.
    """
    rate = Iperf().measure(
        place, shop.run, flows=_connections(run), seconds=run.own_seconds or run.seconds, control=control
    )
    name = f"iperf3 {control}"
    shop.say(f"{name:24s} {place.name:24s} {rate.rate / MIB:.1f} MiB/s, steady {rate.steady / MIB:.1f} MiB/s")
    return rate


def _connections(run: Outcome) -> int:
    return int(run.detail.get("connections") or 8)


def _link_details(ceiling: float, runs: Sequence[Outcome], links: Sequence[LinkRate]) -> dict[str, Any]:
    steady = [rate for one in runs if (rate := _steady(one)) is not None]
    return {
        "payload_ceiling_mib_per_s": round(ceiling / MIB, 2),
        "share_of_ceiling": round(_median(runs, lambda one: one.own_rate) / ceiling, 4),
        "share_of_ceiling_by_process_time": round(_median(runs, lambda one: one.rate) / ceiling, 4),
        "steady_mib_per_s": round(statistics.median(steady) / MIB, 2) if steady else None,
        "iperf3": [one.row() for one in links],
        "runs": [_told(one) for one in runs],
    }


def many_disks(shop: Workshop, size: Size) -> Figure:
    """80 disks of a node, half of each changed in fragments of 64 KiB."""
    figure, budget = Figure("dp-80-disks"), 512 * MIB
    shop.say("80 disks")
    disks = [
        shop.disk(Changed(Full(size.disk_mib * MIB, whole=True, seed=100 + number), 65536, 0.5, seed=100 + number))
        for number in range(80)
    ]
    with Wan(Shape(100, 500e6), shop.run) as place:
        run = shop.copy(Farshore(options=("--node-window", "512MiB")), place, disks, connections=AUTO)
        links = [_link(shop, place, run)] if _Missing(shop, figure).there(Iperf()) else []
        ceiling = _ceiling_of(place)
    each = run.detail["disks"]
    in_flight = run.detail["peak_in_flight_bytes"]
    figure.checks += [
        Check("rate", run.own_rate / ceiling, ">=", 0.95, "of the payload ceiling"),
        Check("fairness", jain([one["bytes"] / one["seconds"] for one in each]), ">=", 0.95, "by Jain's index"),
        Check("in flight at most", in_flight / budget, "<=", 1.0, "of the node's budget"),
    ]
    seconds = sorted(one["seconds"] for one in each)
    figure.details |= _link_details(ceiling, [run], links)
    figure.details["disk_seconds"] = {"first": seconds[0], "median": seconds[40], "last": seconds[-1]}
    return figure


def fragments(shop: Workshop, size: Size) -> Figure:
    """A disk of which 5 % changed in extents of 4 KiB, beside rsync's delta."""
    figure = Figure("dp-fragments")
    disk = shop.disk(Changed(Full(size.fragments_mib * MIB, whole=True), 4096, 0.05))
    rivals: list[Peer] = [RsyncDaemon(), RsyncSsh(), RsyncDaemon(4096)]
    with Wan(Shape(80, GBIT), shop.run) as place:
        missing = _Missing(shop, figure)
        runs = [shop.copy(Farshore(), place, [disk], connections=AUTO) for _ in range(size.rounds)]
        others = [shop.copy(one, place, [disk]) for one in rivals if missing.there(one)]
    wire = statistics.median(one.detail["wire_bytes"] for one in runs)
    seconds = _median(runs, lambda one: one.own_seconds or one.seconds)
    best = min((one.seconds for one in others), default=None)
    figure.checks += [
        Check("wire bytes", wire / disk.data_bytes, "<=", 1.03, "of the changed bytes"),
        Check("speed", best / seconds if best else None, ">=", 4.0, "times rsync's best delta"),
    ]
    figure.details |= {
        "changed_bytes": disk.data_bytes,
        "wire_bytes": int(wire),
        "source_read_bytes": runs[-1].detail.get("source_read_bytes"),
        "seconds": round(seconds, 3),
        "process_seconds": round(_median(runs, lambda one: one.seconds), 3),
        "runs": [_told(one) for one in runs],
        "rsync": [_told(one) for one in others],
    }
    return figure


def loopback(shop: Workshop, size: Size) -> Figure:
    """Loopback, in memory where there is room: what the processors allow."""
    figure = Figure("dp-loopback")
    disk = shop.in_memory(shop.disk(Full(size.loopback_mib * MIB)))
    missing = _Missing(shop, figure)
    peers: list[Peer] = [peer for peer in (Farshore(), Pipe(), Nbdcopy(tls=True)) if missing.there(peer)]
    runs: dict[str, list[Outcome]] = {peer.name: [] for peer in peers}
    with Loopback() as place:
        for _ in range(size.loopback_rounds):
            for peer in peers:
                runs[peer.name].append(shop.copy(peer, place, [disk]))
    ours, pipe, nbdcopy = runs["farshore"], runs["python tls pipe"], runs.get("nbdcopy tls", [])
    rate = _median(ours, lambda one: one.own_rate)
    rival = _median(nbdcopy, lambda one: one.own_rate) if nbdcopy else None
    figure.checks += [
        Check("rate", rate / rival if rival else None, ">=", 2.2, "times nbdcopy over TLS"),
        Check("rate", rate / _median(pipe, lambda one: one.own_rate), ">=", 0.8, "of a bare Python TLS pipe"),
    ]
    for place_in_pair, end in enumerate(("source", "target")):
        for own in (True, False):
            cost, bare = (
                statistics.median(one.cpu_per_gib(own=own)[place_in_pair] for one in found) for found in (ours, pipe)
            )
            if own:
                figure.checks.append(Check(f"CPU per GiB, {end}", cost / bare, "<=", 1.35, "of the pipe's"))
            figure.details[f"cpu_s_per_gib_{end}{'' if own else '_with_start_up'}"] = {
                "farshore": round(cost, 3),
                "pipe": round(bare, 3),
                "ratio": round(cost / bare, 3),
            }
    figure.details["by_process_time"] = {
        "times_nbdcopy_tls": round(_median(ours, lambda one: one.rate) / rival, 3) if rival else None,
        "of_pipe": round(_median(ours, lambda one: one.rate) / _median(pipe, lambda one: one.rate), 3),
    }
    figure.details["runs"] = {name: [_told(one) for one in found] for name, found in runs.items()}
    return figure


def memory(shop: Workshop, size: Size) -> Figure:
    """What a node keeps in memory: 1, 8 and 80 disks, budgets of 64 and 512 MiB."""
    figure, worst = Figure("dp-memory"), 0.0
    rows = []
    with Wan(Shape(80, GBIT), shop.run) as place:
        for count in (1, 8, 80):
            each = size.memory_mib // count * MIB
            disks: list[Disk] = [shop.disk(Full(each, seed=200 + number)) for number in range(count)]
            for budget in (64, 512):
                peer = Farshore(options=("--node-window", f"{budget}MiB"))
                run = shop.copy(peer, place, disks, connections=AUTO)
                in_flight = run.detail["peak_in_flight_bytes"]
                bound = 80 * MIB + 1.1 * in_flight + 2 * MIB * _connections(run)
                shares = [usage.peak_rss_bytes / bound for usage in (run.source, run.target)]
                worst = max(worst, *shares)
                rows.append(
                    {
                        "disks": count,
                        "budget_mib": budget,
                        "peak_in_flight_mib": round(in_flight / MIB, 1),
                        "bound_mib": round(bound / MIB, 1),
                        "source_rss_mib": round(run.source.peak_rss_bytes / MIB, 1),
                        "target_rss_mib": round(run.target.peak_rss_bytes / MIB, 1),
                        "ok": max(shares) <= 1.0,
                        "run": _told(run),
                    }
                )
                figure.checks.append(
                    Check(
                        f"in flight, {count} disks, {budget} MiB",
                        in_flight / (budget * MIB),
                        "<=",
                        1.0,
                        "of the budget",
                    )
                )
    bound_text = "of 80 MiB + 1.1 in flight + 2 MiB a connection"
    figure.checks.insert(0, Check("memory", worst, "<=", 1.0, bound_text))
    figure.details["runs"] = rows
    return figure


def stall(shop: Workshop, size: Size) -> Figure:
    """Eight disks over a link; the storage of one stops answering, at the target or at the source."""
    figure = Figure("dp-stall")
    disks = [shop.disk(Full(size.stall_mib * MIB, seed=300 + number)) for number in range(8)]
    others, runs, costs = disks[:-1], list[Outcome](), dict[End, list[float]]()
    outlasted = list[float]()
    with Wan(Shape(40, 500e6), shop.run) as place:
        able = _Missing(shop, figure).there(Stalled("target", 0))
        for _ in range(max(1, size.rounds - 1)):
            alone = shop.copy(Farshore(), place, others, connections=AUTO)
            usual = max(seconds_of(alone, others))
            runs.append(alone)
            for end in ENDS if able else ():
                runs.append(shop.copy(peer := Stalled(end, 1.5 * usual), place, disks, connections=AUTO))
                slowest = max(seconds_of(runs[-1], others))
                costs.setdefault(end, []).append(slowest / usual)
                outlasted.append(peer.hold_s / slowest)
    for end in ENDS:
        value = statistics.median(costs[end]) if end in costs else None
        figure.checks.append(Check(f"others, {end} stalls", value, "<=", 1.1, "of their time without that disk"))
    shortest = min(outlasted, default=None)
    figure.checks.append(Check("stall", shortest, ">=", 1.0, "of the slowest other's time"))
    figure.details |= {"costs": costs, "runs": [_told(one) | {"disks": one.detail["disks"]} for one in runs]}
    return figure


def resume(shop: Workshop, size: Size) -> Figure:
    """Processes killed with SIGKILL at random instants: the source's, the target's, both."""
    from farshore.testing.resume import measure_resume

    seed = 1
    shop.say(f"{size.kills} copies that are broken off, two processes each; about {10 * size.kills} s")
    found = measure_resume(shop.run / "resume", size.kills, seed)
    most, bound = found["resent_bytes"], found["bound_bytes"]
    figure = Figure("dp-resume")
    figure.checks += [
        Check("sent again", most / bound, "<=", 1.0, "of level + intermediate checkpoint window, per disk"),
        Check("sent again for other disks", found["bystander_resent_bytes"], "<=", 0, "bytes"),
        Check("identical copies", 1.0 if found["identical"] else 0.0, ">=", 1.0, "of all"),
    ]
    figure.details |= found | {"seed": seed}
    return figure


Measured = Callable[[Workshop, Size], Figure]


def aws_faults(shop: Workshop, size: Size) -> Figure:
    """Every call of the platform ``aws`` with every fault; what stands for AWS is loaded only then."""
    from benchmarks import aws_faults

    return aws_faults.figure(shop.say, size.name, shop.run)


def aws_crossing(shop: Workshop, _size: Size) -> Figure:
    """A guest that goes to AWS and comes back; loaded as above."""
    from benchmarks import aws_crossing

    return aws_crossing.figure(shop.say)


def aws_shares(shop: Workshop, size: Size) -> Figure:
    """Two nodes under one account's rate of calls; loaded as above."""
    from benchmarks import aws_shares

    return aws_shares.figure(shop.say, size.name)


def aws_storage(figure_id: str) -> Measured:
    """What the block interface of EBS is asked for and what that takes; loaded only then, too."""

    def measure(shop: Workshop, size: Size) -> Figure:
        module = import_module(f"benchmarks.{figure_id.replace('-', '_')}")
        figure: Figure = module.figure(shop, size.name)
        return figure

    return measure


def aws_crash(shop: Workshop, size: Size) -> Figure:
    """A node that dies at every call of a checkpoint in AWS."""
    from benchmarks import aws_crash

    return aws_crash.figure(shop.say, size.name, shop.run)


FIGURES: Final[dict[str, Measured]] = {
    "dp-full-80": full_copy("dp-full-80", Shape(80, GBIT), 0.96, 0.98),
    "dp-full-20": full_copy("dp-full-20", Shape(20, GBIT), 0.97),
    "dp-full-200": best_of("dp-full-200", Shape(200, GBIT)),
    "dp-loss": best_of("dp-loss", Shape(80, GBIT, 0.001)),
    "dp-80-disks": many_disks,
    "dp-fragments": fragments,
    "dp-loopback": loopback,
    "dp-memory": memory,
    "dp-resume": resume,
    "dp-limit": limited.figure,
    "dp-stall": stall,
    "aws-crossing": aws_crossing,
    "aws-crash": aws_crash,
    "aws-faults": aws_faults,
    "aws-shares": aws_shares,
    "aws-calls": aws_storage("aws-calls"),
    "aws-memory": aws_storage("aws-memory"),
    "aws-throughput": aws_storage("aws-throughput"),
    "rec-1000": lambda shop, size: recovery.many_machines(shop, size.name),
    "rec-kill": lambda shop, size: recovery.killed(shop, size.name),
    "rec-scale": lambda shop, size: recovery.shared(shop, size.name),
    "rec-faults": lambda shop, size: recovery.faulty(shop, size.name),
    "rec-drill": lambda shop, _size: rehearsal.figure(shop.say),
    "rec-failback": lambda shop, _size: wayback.failback(shop.say),
    "rec-unplanned": lambda shop, _size: wayback.unplanned(shop.say),
    "rec-lost-control": lambda shop, _size: lost.figure(shop.say),
}
