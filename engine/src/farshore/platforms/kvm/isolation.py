"""Proves that an isolated network leads nowhere: canaries in both directions, each with a control that must succeed.

Before any machine is on, two stand-ins (:mod:`standin`) are plugged into the network's bridge as guests are, and one
is put outside, behind a link of its own to the hypervisor. Then everybody tries to reach everybody:

- from inside: not the hypervisor, by any of its addresses, and not the one outside;
- from outside: not the guests;
- controls, without which a silence would prove nothing: the hypervisor reaches its own canary, the one outside, and a
  guest (the way of the probes); a guest reaches the other guest.

What the guests do later shows in counters that lie behind the rules: see :mod:`farshore.platforms.kvm.firewall`.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from farshore.errors import Permanent, Retry
from farshore.model.task import Canary, IsolationResult, PacketCount
from farshore.platforms.kvm import firewall, standin

#: How long a canary that must not be reached is tried; a control that takes longer makes it so much longer.
SILENCE_S: Final = 2.0
#: How long a control is tried.
CONTROL_S: Final = 20.0
_TOOL_S: Final = 30.0
#: For links between hypervisor and the one outside: kept for tests of networks (RFC 2544), routed nowhere.
_OUTSIDE: Final = ipaddress.IPv4Network("198.18.0.0/15")
_SCRIPT: Final = Path(standin.__file__)


class StandIn:
    """A stand-in's process; ``port`` is where its canary listens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        command = [_tool("unshare"), "--net", sys.executable, "-I", "-S", str(_SCRIPT)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
        self.port = int(self.ask(do="listen"))

    @property
    def pid(self) -> int:
        """The process whose network namespace it is."""
        return self._process.pid

    def ask(self, patience_s: float = CONTROL_S, **command: Any) -> Any:
        """Have one command done; Retry if the stand-in does not answer."""
        stdin, stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)
        watch = threading.Timer(patience_s + _TOOL_S, self._process.kill)
        watch.start()
        try:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            said = _pipe(self._process.stderr).read()[-500:].strip() if self._process.wait(_TOOL_S) else ""
            raise Permanent(
                f"the stand-in {self.name!r} for the proof of isolation did not start: {said or 'no answer'}",
                code="stand-in",
                hint="The node has to run as root in the hypervisor's network namespace, and may make namespaces"
                " (systemd: RestrictNamespaces=net).",
            )
        return json.loads(line)

    def reach(self, targets: Sequence[tuple[str, int]], timeout_s: float) -> list[str]:
        """Try to reach ``targets``; return what answered of each."""
        found: list[str] = self.ask(timeout_s, do="reach", targets=[list(one) for one in targets], timeout_s=timeout_s)
        return found

    def plug(self, port: str, address: str, prefix: int, gateway: str) -> None:
        """Give it a link whose other end is ``port`` in the hypervisor, an address and a way out."""
        _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        inside = ("--net", f"--target={self.pid}")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/{prefix}", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", gateway),
        ):
            _run(_tool("nsenter"), *inside, _tool("ip"), *words)
        self.address = address

    def close(self) -> None:
        """End it; its namespace and links go with it."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def ports(bridge: str) -> dict[str, str]:
    """Return the names of the links that a proof on ``bridge`` makes in the hypervisor, by stand-in."""
    short = hashlib.sha256(bridge.encode()).hexdigest()[:8]
    return {name: f"fsc{letter}-{short}" for letter, name in (("a", "guest a"), ("b", "guest b"), ("o", "outside"))}


def prove(network: str, bridge: str, gateway: str, subnet: str, taken: Sequence[str]) -> list[Canary]:
    """Try all canaries of one network; ``taken`` are addresses that its machines will have.

    Raises:
        Permanent: the stand-ins cannot be made here.
    """
    inside = ipaddress.IPv4Network(subnet)
    guests = _free(inside, {gateway}, {*taken, gateway})
    with contextlib.ExitStack() as stack:
        names = ports(bridge)
        for port in names.values():
            unplug(port)
        link = _outside()
        own, other = (str(address) for address in link.hosts())
        cast = {}
        for name in (*list(names)[: len(guests)], "outside"):
            cast[name] = stack.enter_context(contextlib.closing(StandIn(name)))
            stack.callback(unplug, names[name])
        for name, address in zip(names, guests, strict=False):
            cast[name].plug(names[name], address, inside.prefixlen, gateway)
            _ip("link", "set", names[name], "master", bridge, "up")
        cast["outside"].plug(names["outside"], other, link.prefixlen, own)
        _ip("address", "add", f"{own}/{link.prefixlen}", "dev", names["outside"])
        _ip("link", "set", names["outside"], "up")
        canary = standin.Canary("0.0.0.0")  # noqa: S104 - reachable on purpose: that is what is tried
        stack.callback(canary.close)
        found = _try_all(network, cast, canary.port, gateway, own)
        _forget(bridge, guests)
    return found


def _try_all(network: str, cast: dict[str, StandIn], port: int, gateway: str, own: str) -> list[Canary]:
    first, outside = cast["guest a"], cast["outside"]
    found: list[Canary] = []
    slowest = 0.0

    def control(source: str, target: str, seek: Any) -> None:
        nonlocal slowest
        began = time.monotonic()
        answered = ""
        while not answered and (left := began + CONTROL_S - time.monotonic()) > 0:
            answered = seek(min(left, SILENCE_S))
        slowest = max(slowest, time.monotonic() - began)
        detail = f"answered by {answered}" if answered else f"no answer within {CONTROL_S:g} s"
        found.append(
            Canary(network=network, source=source, target=target, control=True, reached=bool(answered), detail=detail)
        )

    def here(address: str, to: int) -> Any:
        return lambda seconds: standin.reach([(address, to)], seconds)[0]

    control("hypervisor", f"hypervisor {gateway}", here(gateway, port))
    control("hypervisor", f"outside {outside.address}", here(outside.address, outside.port))
    control("hypervisor", f"guest a {first.address}", here(first.address, first.port))
    second = cast.get("guest b")
    if second is not None:
        peer = (second.address, second.port)
        control("guest a", f"guest b {second.address}", lambda seconds: first.reach([peer], seconds)[0])
    silence = max(SILENCE_S, min(CONTROL_S, 3 * slowest))
    ways = [
        (first, "guest a", f"hypervisor {gateway}", (gateway, port)),
        (first, "guest a", f"hypervisor {own}", (own, port)),
        (first, "guest a", f"outside {outside.address}", (outside.address, outside.port)),
        (outside, "outside", f"guest a {first.address}", (first.address, first.port)),
    ]
    for who in (first, outside):
        mine = [way for way in ways if way[0] is who]
        for (_, source, target, _), answered in zip(mine, who.reach([way[3] for way in mine], silence), strict=True):
            detail = f"answered by {answered}" if answered else f"silent for {silence:.1f} s"
            found.append(
                Canary(
                    network=network, source=source, target=target, control=False, reached=bool(answered), detail=detail
                )
            )
    return found


def verdict(canaries: Sequence[Canary], packets: Sequence[PacketCount]) -> IsolationResult:
    """Put together what was seen."""
    wrong = [
        f"{one.source} {'reached' if one.reached else 'did not reach'} {one.target} ({one.detail})"
        for one in canaries
        if not one.ok
    ]
    wrong += [f"{one.outside} packets got outside of network {one.network}" for one in packets if one.outside]
    # What was never seen by a rule was perhaps never asked: the canaries' own tries have to show.
    wrong += [
        f"the rules of network {one.network} stopped nothing, although the canaries tried"
        for one in packets
        if canaries and not one.stopped
    ]
    return IsolationResult(proven=not wrong, reason="; ".join(wrong), canaries=tuple(canaries), packets=tuple(packets))


def leftovers(bridge: str) -> list[str]:
    """Return the bridge and the links of a proof, where they are still there."""
    return [port for port in (*ports(bridge).values(), bridge) if _exists(port)]


def unplug(port: str) -> None:
    """Remove a link if it is there; it may go by itself meanwhile, with its namespace."""
    if _exists(port):
        with contextlib.suppress(Permanent):
            _ip("link", "delete", port)


def _exists(link: str) -> bool:
    # Not from /sys, which shows the network namespace of whoever mounted it.
    return any(name == link for _, name in socket.if_nameindex())


def _free(subnet: ipaddress.IPv4Network, never: set[str], rather_not: set[str]) -> list[str]:
    """Return up to two addresses, from the end; no machine is on, so that one of a machine's will do too."""
    last = int(subnet.broadcast_address)
    hosts = [str(ipaddress.IPv4Address(last - back)) for back in range(1, min(subnet.num_addresses - 1, 4000))]
    free = [one for one in hosts if one not in rather_not] or [one for one in hosts if one not in never]
    if len(free) < 2:
        free += [one for one in hosts if one not in never and one not in free]
    return free[:2]


def _outside() -> ipaddress.IPv4Network:
    """Return a small network that this host has no other route to than its default one."""
    known = _run(_tool("ip"), "-4", "-json", "route", "show", "table", "all").strip() or "[]"
    used = [_network(str(route.get("dst", ""))) for route in json.loads(known)]
    for candidate in _OUTSIDE.subnets(new_prefix=30):
        if not any(one is not None and one.prefixlen and one.overlaps(candidate) for one in used):
            return candidate
    raise Permanent(f"no free network in {_OUTSIDE} for the proof of isolation", code="stand-in")


def _network(text: str) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network(text)
    except ValueError:
        return None  # default, broadcast


def _forget(bridge: str, addresses: Sequence[str]) -> None:
    """Forget the stand-ins' link addresses: a machine may have their addresses next."""
    for address in addresses:
        with contextlib.suppress(Permanent):
            _ip("neighbour", "delete", address, "dev", bridge)


def _ip(*words: str) -> None:
    _run(_tool("ip"), *words)


def _tool(name: str) -> str:
    path = firewall.which(name)
    if path is None:
        package = "iproute2" if name == "ip" else "util-linux"
        raise Permanent(f"{name} is not installed", code="missing-tool", hint=f"As root: apt-get install {package}")
    return path


def _run(*words: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TOOL_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Retry(f"{words[0]} did not end", code="stand-in") from error
    if done.returncode:
        raise Permanent(
            f"{' '.join(words)} failed: {done.stderr.strip()}",
            code="stand-in",
            hint="The node has to run as root in the hypervisor's network namespace.",
        )
    return done.stdout


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("it was started without pipes")
    return pipe
