"""One schedule: a source node, target nodes, a control plane, and what goes wrong between them, all from one seed."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import importlib
import logging
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import blake3  # noqa: F401 - loaded before time stands still
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from farshore.checkpoints.manifest import newest
from farshore.errors import Corruption, FarshoreError, Fenced, NoSpace, Permanent, RestartFromCheckpoint, Retry
from farshore.journal import history
from farshore.model.checkpoint import Manifest
from farshore.model.grant import Grant, GrantDisk, sign
from farshore.model.plan import Transport
from farshore.model.task import ReplicateDisk, ReplicateParams
from farshore.platforms.contract import Caps, Snapshot
from farshore.replication import group, resume, serve, usage
from farshore.replication.flow import NodeWindow
from farshore.transport import frames, session
from farshore.transport import links as links_module
from farshore.transport.dialing import Dialer
from farshore.transport.listener import DataListener
from farshore.transport.tls import NodeTls, identity_of
from sim import files, network, runtime
from sim.oracle import Attempt, Oracle
from sim.platform import Machines, Manifests, Pool, SimSource, SimTarget
from sim.runtime import Hub, Killed, Process, Violation, hub

KIB = 1024
CHUNK = 128 * KIB
GROUP = "grp"
PACKAGES = ("durable", "window", "transport", "replication", "journal", "checkpoints")
#: What is made smaller, so that a disk of a few hundred KiB has many chunks: name -> (real, here).
SMALLER: dict[str, float] = {
    "CHUNK_SIZE": CHUNK,
    "MAX_PAYLOAD": CHUNK,
    "QUANTUM": CHUNK,
    "ZERO_STEP": 2 * CHUNK,
    "MAX_EXTENTS": 8,
    "MAX_DIGESTS": 4,
    "UNIT_LEAVES": 4,  # of an audit, which asks for no more at once either
    # A window is judged after few chunks, and progress is told often.
    "INTERVAL_CHUNKS": 3,
    "INTERVAL_S": 0.02,
    "INTERVAL_MAX_S": 0.2,
    "GOOD": 1,
    "REST_PROBE": 2,
    "PROGRESS_INTERVAL_S": 0.02,
}

KINDS = (
    "crash-source",
    "crash-target",
    "crash-both",
    "power",
    "cut",
    "partition",
    "damage",
    "slow-disk",
    "stall",
    "retry",
    "no-space",
    "io-error",
    "vanish-point",
    "lose-draft",
    "zombie",
    "clock",
    "squeeze",
    "zeros",
    "duplicate",
    "takeover",
    "expire",
    "epoch",
    "read-error",
    "preempt",
    "silence",
    "give-up",
    "revert",
    "unheard",
    "overclaim",
)


@dataclass(frozen=True)
class Theme:
    """What some schedules are about: kinds that do harm only together, and what makes their meeting likely.

    Attributes:
        kinds: drawn in every schedule of the theme.
        without: never drawn in it.
        locks: the platform lets another node go on in a draft.
        pace_s: how far apart the larger faults are, on average.
        deadly: how much more often than elsewhere processes die at operations whose names begin so.
        loses: how often a draft is lost before an attempt.
        stall_at_commit: how often a seal, or what a publication creates, takes long.
    """

    kinds: frozenset[str]
    without: frozenset[str] = frozenset()
    locks: bool = False
    pace_s: tuple[float, ...] = (0.05, 0.3, 1.0)
    deadly: Mapping[str, float] = field(default_factory=dict)
    loses: float = 0.2
    stall_at_commit: float = 0.1


PLAIN = Theme(frozenset())
THEMES = {
    # Two nodes take turns in one draft, by what the control plane heard of it last, until its source point is gone.
    "relay": Theme(
        frozenset({"crash-target", "takeover", "vanish-point", "revert", "lose-draft", "unheard", "overclaim"}),
        without=frozenset({"power", "zombie", "silence"}),
        locks=True,
        deadly={"open-done": 5.0},
    ),
    # A draft passes from point to point, and guests go back to what the base has, which no list names then.
    "passing": Theme(
        frozenset({"crash-target", "give-up", "vanish-point", "revert", "zeros"}),
        without=frozenset({"takeover", "zombie", "power", "silence", "lose-draft"}),
    ),
    # A node stops just before it publishes, and the group goes on without it, also in the other direction.
    "overtaken": Theme(
        frozenset({"stall", "silence", "give-up", "epoch", "takeover", "cut"}),
        pace_s=(5.0, 20.0),
        stall_at_commit=0.3,
    ),
    # Power fails while journals are written.
    "torn": Theme(
        frozenset({"power"}),
        without=frozenset({"crash-both", "clock"}),
        pace_s=(1.0, 5.0),
        deadly={"sync-journal": 5.0},
    ),
    # A process dies before a name is durable, the next one goes on below that name, and power fails.
    "half-named": Theme(
        frozenset({"crash-target", "power"}),
        without=frozenset({"crash-both", "zombie", "silence", "clock", "expire"}),
        deadly={"sync-dir": 20.0},
    ),
    # Two nodes have worked on a draft that is lost: one begins it again, and the other knows only the one before.
    "handed-back": Theme(
        frozenset({"crash-target", "takeover", "lose-draft"}),
        without=frozenset({"power", "zombie", "silence", "vanish-point", "give-up", "epoch", "no-space", "unheard"}),
        locks=True,
        pace_s=(5.0, 20.0),
        deadly={"write-done": 8.0},
        loses=0.3,
    ),
    # A draft is lost, and a process dies as it finds that out.
    "lost": Theme(
        frozenset({"crash-target", "lose-draft"}),
        without=frozenset({"power", "zombie", "silence", "takeover", "vanish-point", "give-up", "epoch", "no-space"}),
        pace_s=(5.0, 20.0),
        deadly={"open-done": 20.0, "seal": 20.0, "write-done": 5.0},
        loses=0.6,
    ),
}
#: The share of schedules that have one.
THEMED = 0.25


class _SecretsOfFiles:
    """``secrets`` for names of temporary files."""

    @staticmethod
    def token_hex(size: int) -> str:
        return f"{hub().library_rng.getrandbits(size * 8):0{size * 2}x}"


@dataclass(frozen=True)
class Identity:
    der: bytes
    tls: NodeTls


@lru_cache
def identity(site: str, node: str) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    uri = x509.UniformResourceIdentifier(f"spiffe://farshore/site/{site}/node/{node}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    der = certificate.public_bytes(Encoding.DER)
    made: Any = type("Shown", (), {"der": der})
    tls = NodeTls(
        identity_of(der),
        network.Context(made, server=True),  # type: ignore[arg-type]
        network.Context(made, server=False),  # type: ignore[arg-type]
    )
    return Identity(der, tls)


@lru_cache
def grant_private() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@lru_cache(maxsize=64)
def _identity_of(der: bytes) -> Any:
    return identity_of(der)


def _boot_id() -> str:
    return f"{hub().check().process.machine.boot:036}"


# --- the stage --------------------------------------------------------------------------------------------------------


def _modules() -> list[Any]:
    for name in ("farshore.replication.group", "farshore.replication.serve", "farshore.checkpoints.publish"):
        importlib.import_module(name)
    names = sorted(sys.modules)
    return [sys.modules[n] for n in names if n.startswith("farshore.") and n.split(".")[1] in (*PACKAGES, "blocks")]


@contextlib.contextmanager
def stage() -> Iterator[None]:
    """Put the simulation's threads, clocks, sockets and files under the modules of the data path."""
    import secrets
    import threading

    replaced = {**runtime.REPLACED, **network.REPLACED, **files.REPLACED, id(secrets): _SecretsOfFiles}
    replaced[id(usage.peak_rss_bytes)] = lambda: 0  # it is told to the peer, in as many digits as it has
    replaced[id(identity_of)] = _identity_of
    replaced[id(history.boot_id)] = _boot_id
    undo: list[tuple[Any, str, Any]] = []
    defaults: list[tuple[Any, Any, Any]] = []
    for module in _modules():
        for name, value in list(vars(module).items()):
            new = replaced.get(id(value))
            if new is None and name in SMALLER and isinstance(value, int | float):
                new = SMALLER[name]
            if new is None:
                new = runtime.of_a_module(value)
            if new is not None:
                undo.append((module, name, value))
                setattr(module, name, new)
            functions = [value] if callable(value) else []
            if isinstance(value, type):
                functions = [f for f in vars(value).values() if callable(f)]
            for function in functions:
                if getattr(function, "__module__", None) != module.__name__ or not hasattr(function, "__defaults__"):
                    continue
                plain, named = function.__defaults__, function.__kwdefaults__
                small = tuple(CHUNK if d == 1 << 20 and d is not True else d for d in plain or ())
                small_named = {k: CHUNK if d == 1 << 20 else d for k, d in (named or {}).items()}
                if small != (plain or ()) or small_named != (named or {}):
                    defaults.append((function, plain, named))
                    function.__defaults__ = small if plain is not None else None
                    function.__kwdefaults__ = small_named if named is not None else None
    init = frames.List.__init__
    defaults.append((init, init.__defaults__, init.__kwdefaults__))
    init.__defaults__ = (SMALLER["MAX_EXTENTS"],)
    abort = session.Session.abort

    def watched_abort(self: session.Session, error: FarshoreError) -> None:
        for request in self._requests:
            network.network().on_abandoned(request.frame)
        abort(self, error)

    session.Session.abort = watched_abort  # type: ignore[method-assign]
    methods = {name: getattr(threading.Thread, name) for name in runtime.PATCHED_METHODS}
    for name, method in runtime.PATCHED_METHODS.items():
        setattr(threading.Thread, name, method)
    try:
        yield
    finally:
        session.Session.abort = abort  # type: ignore[method-assign]
        for name, method in methods.items():
            setattr(threading.Thread, name, method)
        for module, name, value in reversed(undo):
            setattr(module, name, value)
        for function, plain, named in defaults:
            function.__defaults__ = plain
            function.__kwdefaults__ = named


class _Watch(logging.Handler):
    """An error in the log is a bug of ours that something caught."""

    def emit(self, record: logging.LogRecord) -> None:
        if runtime.HUB is None or runtime.HUB.current is None or not runtime.HUB.current.process.alive:
            return
        if record.exc_info and isinstance(record.exc_info[1], Killed):
            return
        text = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
        runtime.HUB.failure = runtime.HUB.failure or Violation(f"logged as an error: {record.getMessage()}\n{text}")


# --- nodes ------------------------------------------------------------------------------------------------------------


class Machine:
    """A node's machine: its files, and the process that runs on it."""

    def __init__(self, world: World, site: str, name: str, port: int) -> None:
        self.world = world
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.identity = identity(site, name)
        self.files = files.Files()
        self.files.on_sync = lambda path, content: world.oracle.synced(name, path, content)
        self.files.strike = world.strike_file
        self.process: Process | None = None
        self.boot = 1
        self.links: Any = None
        self.window: NodeWindow | None = None
        self.service: Any = None

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.alive

    def start_target(self) -> None:
        process = self.process = Process(self.name, self)

        def begin() -> None:
            self.window = NodeWindow(self.world.budget)
            links = self.links = links_module.Links(self.identity.tls, give_up_s=self.world.give_up_s)
            if self.world.dials:
                DataListener(lambda: self.identity.tls, adopt=links.adopt).start(self.address)

        hub().spawn(process, begin, f"{self.name}-main")

    def start_source(self) -> None:
        process = self.process = Process(self.name, self)
        self.world.oracle.source_died()

        def begin() -> None:
            self.service = serve.SourceService(
                SimSource(self.world.machines), self.identity.tls, grant_private().public_key()
            )
            if not self.world.dials:
                self.service.start(self.address)
                return
            dialer = Dialer(lambda: self.identity.tls, self.service.serve_connection)
            for machine in self.world.betas:
                dialer.keep(machine.address, machine.identity.tls.peer, self.world.connections)

        hub().spawn(process, begin, f"{self.name}-main")

    def die(self, *, power: bool = False) -> None:
        if self.process is not None:
            alive = self.process.alive
            with contextlib.suppress(Killed) if hub().current is None else contextlib.nullcontext():
                try:
                    hub().kill(self.process)
                finally:
                    if alive:
                        for attempt in self.world.oracle.attempts:
                            if attempt.process is self.process:
                                attempt.over = True
                    if power:
                        self.boot += 1
                        self.files.power_cut()


class World:
    """Everything of one schedule."""

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        rng = self.rng = random.Random(seed)
        self.seed = seed
        self.hub = Hub(seed, switchiness=rng.choice((0.02, 0.1, 0.3)))
        self.net = network.Network()
        density = rng.choice((0.12, 0.3, 0.6))  # some schedules have few kinds, some have most of them at once
        chosen = [kind for kind in KINDS if rng.random() < density]
        named = rng.choice(sorted(THEMES)) if rng.random() < THEMED else ""
        theme = self.theme = THEMES[named] if named and faults else PLAIN
        self.kinds = {*chosen, *theme.kinds} - theme.without if faults else set()
        if "overclaim" in self.kinds:  # what a failed flush has forgotten is read back all the same: no word is proven
            self.kinds.discard("io-error")
        self.faults_left = rng.randint(3 if theme.kinds else 1, 6) if self.kinds else 0
        self.healed = not self.kinds
        self.counts: Counter[str] = Counter()
        if theme is not PLAIN:
            self.counts[f"theme {named}"] += 1
        self.cycles = rng.choice((1, 2, 2, 3))
        self.level = rng.choice((1, 2, 3, 4)) * CHUNK
        # What a plan and a site link may say: the windows move, the source dials, zstd, a platform that locks drafts.
        moves = rng.random() < 0.4
        self.levels = tuple(CHUNK * count for count in (1, 2, 3, 4)) if moves else (self.level,)
        self.dials = rng.random() < 0.3
        self.counts["source dials"] += self.dials
        self.compression: Literal["auto", "off"] = "auto" if rng.random() < 0.4 else "off"
        self.told: dict[str, dict[str, tuple[str, tuple[tuple[int, int], ...]]]] = {}
        self.mark = rng.choice((64, 128, 256, 512)) * KIB
        self.connections = rng.choice((1, 2, 2, 3, 4))
        self.give_up_s = rng.choice((5.0, 30.0, 120.0))
        disks = rng.choice((1, 1, 2, 2, 3))
        sizes = {}
        for index in range(disks):
            size = rng.choice((64, 192, 448, 768, 1024)) * KIB + rng.choice((0, 0, 0, 512, 4096 * 3, 512 * 77))
            sizes[f"web/vd{'abc'[index]}"] = size
        # A budget below the sum of the levels makes the disks share.
        self.budget = max(CHUNK, rng.choice((1, 2, 4)) * CHUNK) if "squeeze" in self.kinds else 16 * CHUNK
        granularity = (
            rng.choice((512, 512, 4096, 4096, 65536))
            if all(s % 65536 == 0 for s in sizes.values())
            else (rng.choice((512, 4096)))
        )
        caps = Caps(
            granularity_bytes=granularity,
            max_io_bytes=rng.choice((CHUNK, 2 * CHUNK)),
            max_parallel=rng.choice((1, 2, 8)),
            durable_on_write=rng.random() < 0.1,
            fences_by="lock" if rng.random() < 0.5 or theme.locks else "none",
            reads_unsealed=rng.random() < 0.9 or theme.locks,
        )
        self.rates = {
            "damage": rng.choice((0.005, 0.03)),
            "slow-disk": rng.choice((0.05, 0.3)),
            "retry": rng.choice((0.01, 0.05)),
            "no-space": rng.choice((0.004, 0.02)),
            "io-error": rng.choice((0.02, 0.1)),
            "crash-op": rng.choice((0.005, 0.02) if theme.kinds else (0.0, 0.005, 0.02)),
            "stall": 0.01,
            "read-error": 0.01,
            "preempt": rng.choice((0.003, 0.02, 0.1)),
        }
        if "preempt" in self.kinds:
            self.hub.preempted = self._preempt
        self.pool = Pool(self.strike, caps)
        self.oracle = Oracle(self.pool, GROUP, self.budget)
        self.oracle.disks = tuple(sizes)
        self.machines = Machines(self.strike, sizes)
        self.manifests = Manifests(self.strike)
        self.manifests.on_put = self.oracle.put
        self.pool.on_written = self.oracle.written
        self.pool.on_failed = self.oracle.failed
        self.pool.on_drop = self.oracle.dropped
        self.net.on_sent = self.oracle.sent
        self.net.on_abandoned = self.oracle.abandoned
        self.net.damage = self._damage
        self.net.on_damage = self.oracle.damaged
        self.net.latency = rng.choice((0.0005, 0.01, 0.1))
        self.net.jitter = rng.choice((0.0, 0.01, 0.2))
        self.net.bytes_per_s = rng.choice((2e6, 20e6, 200e6))
        self.done = False
        self.number = 0
        self.epoch = 1
        self.control = Process("control")
        self.expired = False
        self.silent: Machine | None = None
        self.bases: dict[str, str] = {}

    # Faults ---------------------------------------------------------------------------------------------------------

    def _hit(self, kind: str, *, at: float | None = None) -> bool:
        if self.healed or kind not in self.kinds or self.rng.random() >= (self.rates[kind] if at is None else at):
            return False
        self.counts[kind] += 1
        return True

    def _damage(self) -> str | None:
        if self._hit("damage"):
            return self.rng.choice(("outside", "inside", "inside"))
        return None

    def _preempt(self) -> float:
        """Return for how long the running thread loses the processor, or its lock of the interpreter."""
        return self.hub.rng.choice((0.0005, 0.02, 0.5)) if self._hit("preempt") else 0.0

    def strike(self, operation: str) -> None:
        """Let an operation of a disk or store be slow, fail, or be the last one of its process."""
        here = self.hub
        if not self.healed:
            self._strike_process(operation)
        if self._hit("slow-disk"):
            here.sleep(self.rng.choice((0.01, 0.2, 2.0)))
        elif self._hit("stall", at=self.theme.stall_at_commit if operation in {"put", "seal"} else None):
            here.sleep(self.rng.choice((10.0, 90.0)))
        else:
            here.sleep(self.rng.choice((0.0, 0.0, 0.001, 0.004)))
        if operation.endswith("-done"):
            return
        if operation in {"write", "zero", "flush", "seal", "open", "put", "read"} and self._hit("retry"):
            raise Retry(f"{operation}: try again", code="throttled")
        if operation in {"write", "zero", "open"} and self._hit("no-space"):
            raise NoSpace(f"{operation}: no space", code="pool-full")
        if operation in {"flush", "write"} and self._hit("io-error"):
            raise Permanent(f"{operation}: input/output error", code="file-io")
        if operation in {"read", "list"} and self._hit("read-error"):
            raise OSError(5, "Input/output error")

    def strike_file(self, operation: str, path: str) -> None:
        if not self.healed:
            self._strike_process(f"{operation}-{path.rpartition('/')[2]}")
        if self._hit("slow-disk"):
            self.hub.sleep(0.05)
        if operation == "sync" and path.endswith("/journal") and self._hit("io-error"):
            raise OSError(5, "Input/output error")

    def _strike_process(self, operation: str) -> None:
        task = self.hub.current
        deadly = [times for name, times in self.theme.deadly.items() if operation.startswith(name)]
        rate = self.rates["crash-op"] * max(deadly, default=1.0)
        if task is None or self.faults_left <= 0 or self.rng.random() >= rate:
            return
        machine = task.process.machine
        if machine is None:
            return
        if machine is self.alpha:
            if "crash-source" in self.kinds:
                self._count("crash-source")
                machine.die()
        elif "power" in self.kinds and self.rng.random() < 0.5:
            self._count("power")
            self.counts[f"power at {operation}"] += 1
            self._power()
        elif "crash-target" in self.kinds:
            self._count("crash-target")
            self.counts[f"kill at {operation}"] += 1
            machine.die()

    def _count(self, kind: str) -> None:
        self.counts[kind] += 1
        self.faults_left -= 1

    def _power(self) -> None:
        """The target site loses power: its nodes and its pool together."""
        me = self.hub.current.process.machine if self.hub.current is not None else None
        for machine in self.betas:
            if machine is not me:
                machine.die(power=True)
        self.pool.power_cut()
        if me is not None:
            me.die(power=True)

    def _chaos(self) -> None:
        """Something larger happens now and then, until there was enough of it."""
        if self.done or self.healed:  # the last cycle is published, and what is left is swept
            return
        if self.faults_left <= 0 or self.hub.now > self.ends_at:
            self.heal()
            return
        options = [k for k in self.kinds if k in _LARGE]
        if options:
            kind = self.rng.choice(sorted(options))
            if getattr(self, "_do_" + kind.replace("-", "_"))():
                self._count(kind)
        else:
            self.faults_left -= self.rng.random() < 0.2
        self.hub.after(self.rng.expovariate(1 / self.rng.choice(self.theme.pace_s)), self._chaos)

    def heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self.healed = True
        self.net.partitioned = False
        self.hub.preempted = lambda: 0.0
        for machine in self.betas:
            if machine.process is not None and machine.process.frozen:
                self.hub.thaw(machine.process)

    def _do_crash_source(self) -> bool:
        self.alpha.die()
        return True

    def _do_crash_target(self) -> bool:
        self.rng.choice(self.betas).die()
        return True

    def _do_crash_both(self) -> bool:
        self.alpha.die()
        for machine in self.betas:
            machine.die()
        return True

    def _do_power(self) -> bool:
        self._power()
        return True

    def _do_cut(self) -> bool:
        connections = self.net.connections()
        if not connections:
            return False
        for one in connections if self.rng.random() < 0.3 else [self.rng.choice(connections)]:
            self.net.cut(one)
        return True

    def _do_partition(self) -> bool:
        if self.net.partitioned:
            return False
        self.net.partitioned = True

        def end() -> None:
            self.net.partitioned = False

        self.hub.after(self.rng.choice((0.5, 5.0, 40.0, 300.0)), end)
        return True

    def _do_vanish_point(self) -> bool:
        if not self.machines.points:
            return False
        self.machines.points.pop(next(reversed(self.machines.points)))
        return True

    def _do_zombie(self) -> bool:
        machine = self.rng.choice(self.betas)
        if machine.process is None or not machine.process.alive or machine.process.frozen:
            return False
        process = machine.process
        self.hub.freeze(process)
        self.hub.after(self.rng.choice((1.0, 20.0, 200.0)), lambda: self.hub.thaw(process))
        return True

    def _do_clock(self) -> bool:
        self.hub.wall += self.rng.choice((-86400.0, -3600.0, 3600.0, 50.0))
        return True

    def _do_expire(self) -> bool:
        self.expired = True
        return True

    # The control plane's part ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the schedule to its end.

        Raises:
            Violation: an invariant does not hold.
        """
        runtime.install(self.hub)
        network.install(self.net)
        files.reset()
        self.alpha = Machine(self, "alpha", "alpha-1", 7000)
        self.betas = [Machine(self, "beta", "beta-1", 7001), Machine(self, "beta", "beta-2", 7002)]
        self.ends_at = self.hub.now + self.rng.choice((3.0, 60.0, 400.0))
        try:
            self.hub.spawn(self.control, self._control, "control")
            if self.kinds:
                self.hub.after(self.rng.expovariate(5.0), self._chaos)
            self.hub.run(lambda: self.done)
            self.oracle.unchanged()
        finally:
            for machine in (self.alpha, *self.betas):
                if machine.process is not None:
                    self.hub.current = None
                    self.hub.kill(machine.process)
            self.hub.kill(self.control)
            self.hub._bury()
            runtime.install(None)
            network.install(None)
            files.reset()

    def _control(self) -> None:
        self._guest(first=True)
        for _cycle in range(self.cycles):
            self._one_cycle()
            self._guest(first=False)
        self.heal()
        self._sweep()
        self.done = True

    def _guest(self, *, first: bool) -> None:
        """Guests write."""
        rng = self.rng
        for key, content in self.machines.disks.items():
            earlier = [held for (_, of), held in self.machines.content.items() if of == key]
            if earlier and self._hit("revert", at=0.5):  # to a snapshot of the guest's own, or some of its files
                offset = rng.choice((0, 0, rng.randrange(0, len(content), 512)))
                stop = rng.choice((len(content), len(content), rng.randrange(offset, len(content)) + 1))
                back = rng.choice(earlier)
                if key in self.bases and rng.random() < 0.5:  # then no list of changes names it
                    back = self.machines.content[self.bases[key], key]
                content[offset:stop] = back[offset:stop]
                continue
            style = rng.choice(("sparse", "dense", "few", "none")) if not first else rng.choice(("sparse", "dense"))
            count = {"sparse": 12, "dense": 4, "few": 2, "none": 0}[style]
            longest = {"sparse": 8 * KIB, "dense": 300 * KIB, "few": 200}.get(style, 1)
            for _ in range(count):
                length = rng.randint(1, min(longest, len(content)))
                offset = rng.randrange(len(content) - length + 1)
                pattern = rng.randbytes(length if rng.random() < 0.6 else min(length, 97))
                content[offset : offset + length] = (pattern * (length // len(pattern) + 1))[:length]
            if "zeros" in self.kinds or rng.random() < 0.2:
                for _ in range(rng.randint(0, 3)):
                    length = rng.choice((4 * KIB, 64 * KIB, 200 * KIB))
                    offset = rng.randrange(0, len(content), 4096)
                    length = min(length, len(content) - offset)
                    content[offset : offset + length] = bytes(length)
        self.machines.incremental = rng.random() < 0.8

    def _ensure(self, machine: Machine, start: Callable[[], None]) -> None:
        if not machine.up:
            start()
            self.hub.sleep(0.01)

    def _one_cycle(self) -> None:
        """Order points and cycles until one checkpoint more is published."""
        tries = 0
        given_up = False
        while True:
            if tries and self.rng.random() < 0.7:
                self._guest(first=False)  # the next point is another one
            self.number += 1
            if self._hit(
                "epoch", at=0.5 if given_up else 0.1
            ):  # another site has become the primary, and this one again
                self.epoch += 1
            given_up = False
            point_id = f"pt-{self.number}"
            published = newest(self.manifests, GROUP)
            sequence = published.sequence + 1 if published else 1
            bases = self.bases = {d.disk_key: d.source_point for d in published.disks} if published else {}
            snapshot = self.machines.take(GROUP, point_id, bases, runtime.wall_time())
            for disk in snapshot.disks:
                self.oracle.sources[point_id, disk.disk_key] = self.machines.content[point_id, disk.disk_key]
            identity_ = f"cp-{self.number}"
            self.oracle.orders[identity_] = {"point": point_id, "epoch": self.epoch}
            after_heal = 0
            term = 0
            while True:
                term += 1
                tries += 1
                if term > 2 and self.theme.locks and self._hit("vanish-point", at=0.3):  # two nodes have worked on it
                    self.machines.points.pop(point_id, None)
                if tries > 150:
                    raise Violation("I13: the cycle was tried 150 times")
                outcome = self._attempt(snapshot, published, identity_, sequence, term)
                if self.healed:
                    after_heal += 1
                    if after_heal > 12:
                        raise Violation(f"I13: nothing goes wrong any more, and still: {outcome!r}")
                if outcome is None:
                    self._published(identity_)
                    self.machines.points.pop(point_id, None)
                    return
                if self._is_new_point_needed(outcome):
                    break
                if self._hit("give-up", at=0.3):  # an order that waits too long is replaced, and its point given back
                    given_up = True
                    if self.rng.random() < 0.5:
                        self.machines.points.pop(point_id, None)
                    break
                # A node that still works on it, for its link may be away for long, is not asked again at once.
                self.hub.sleep(10.0 if outcome.code == "draft-busy" else self.rng.choice((0.0, 0.05, 1.0)))

    def _published(self, identity_: str) -> None:
        if identity_ not in self.oracle.published:
            raise Violation(f"I3: {identity_} was said to be published, but no manifest was created")
        self.oracle.unchanged()

    def _is_new_point_needed(self, outcome: FarshoreError) -> bool:
        if isinstance(outcome, RestartFromCheckpoint):
            return outcome.code not in {"session-gone", "grant-expired"}
        if isinstance(outcome, Fenced):
            return self.rng.random() < 0.5 or outcome.code == "stale-checkpoint"
        if isinstance(outcome, Corruption):
            return self.rng.random() < 0.5
        return False

    def _attempt(
        self, snapshot: Snapshot, published: Manifest | None, checkpoint: str, sequence: int, term: int
    ) -> FarshoreError | None:
        """Have one node try; None once it is published."""
        self._ensure(self.alpha, self.alpha.start_source)
        node, other = self.betas
        if self.silent is node or (
            ("takeover" in self.kinds or "zombie" in self.kinds)
            and (self.rng.random() < 0.6 or (node.process is not None and node.process.frozen))
        ):
            node = other
        self.silent = None
        if node.process is not None and node.process.frozen:
            self.hub.thaw(node.process)
        self._ensure(node, node.start_target)
        may_lose = "lose-draft" in self.kinds and not self.healed and bool(self.pool.drafts) and self._is_quiet()
        if may_lose and self.rng.random() < self.theme.loses:
            self._count("lose-draft")
            self.pool.lose_draft(self.rng.choice(sorted(self.pool.drafts)))
        params = self._params(snapshot, published, checkpoint, sequence, term, node)
        box: list[Any] = []
        process = node.process
        assert process is not None
        record = Attempt(process, term, checkpoint, max(self.levels), self.mark)
        unheard = self._hit("unheard", at=0.4)  # what a successor is told then is older than what is in the draft

        def work() -> None:
            try:
                box.append(self._replicate(node, params, record, heard=not unheard))
            except FarshoreError as error:
                box.append(error)
            finally:
                record.over = True

        task = self.hub.spawn(process, work, f"replicate-{checkpoint}.{term}")
        # A node that the control plane hears no more of may work on, beside the one that takes over.
        silent = self._hit("silence", at=0.5) and self.faults_left > 0
        self.faults_left -= silent
        silent_at = self.hub.now + (self.rng.choice((0.01, 0.05, 0.2, 1.0, 5.0)) if silent else float("inf"))
        patience = self.hub.now + self.rng.choice((30.0, 200.0, 2000.0)) if not self.healed else float("inf")
        waiting_for_thaw = False
        while not box and process.alive and not task.done:
            self.hub.block(task.waiters, min(0.5, max(0.0, silent_at - self.hub.now)))
            if self.hub.now >= silent_at:
                if not self.healed and not box and process.alive:
                    self.silent = node
                    break
                silent_at = float("inf")
            if process.frozen and self.rng.random() < 0.05:
                waiting_for_thaw = True
                break  # the node is believed dead: another one takes over while this one may come back
            if self.hub.now > patience and not self.healed:
                break
        if box:
            outcome = box[0]
        elif not process.alive:
            outcome = Retry("the node died", code="node-died")
        else:
            self.counts["left-behind"] += 1
            if not waiting_for_thaw and not process.frozen and self.silent is None and self.rng.random() < 0.5:
                node.die()
            outcome = Retry("the node is silent", code="node-silent")
        if isinstance(outcome, FarshoreError):
            self.counts[f"outcome {outcome.code}"] += 1
            self.hub.problems.append(f"{checkpoint}.{term} at {node.name}: {type(outcome).__name__} {outcome.code}")
            return outcome
        if "duplicate" in self.kinds and self.rng.random() < 0.5 and process.alive and not process.frozen:
            self._again(node, process, params, outcome)
        return None

    def _again(self, node: Machine, process: Process, params: ReplicateParams, first: Any) -> None:
        """Give the same task again: once equals twice (I5)."""
        self.counts["duplicate"] += 1
        box: list[Any] = []

        def work() -> None:
            try:
                box.append(self._replicate(node, params, None))
            except FarshoreError as error:
                box.append(error)

        task = self.hub.spawn(process, work, "replicate-again")
        while not box and process.alive and not task.done:
            self.hub.block(task.waiters, 0.5)
        if box and not isinstance(box[0], FarshoreError) and box[0].manifest != first.manifest:
            raise Violation("I5: the same task gave another checkpoint")

    def _replicate(self, node: Machine, params: ReplicateParams, record: Attempt | None, *, heard: bool = True) -> Any:
        if record is not None:
            self.oracle.attempts.append(record)
        drafts: list[Any] = []

        def tell(*_: Any) -> None:
            if not heard:
                return
            told = self.told.setdefault(params.manifest.checkpoint_id, {})
            for disk, draft in zip(params.disks, drafts, strict=False):
                told[disk.disk_key] = draft.draft_key, tuple(draft.cover())

        result = group.replicate(
            params,
            on_drafts=drafts.extend,
            on_progress=tell,
            target=SimTarget(self.pool),
            manifests=self.manifests,
            links=node.links,
            journal_dir=node.files.root() / "journals",  # type: ignore[arg-type]
            window=node.window,
            grant_key=grant_private().public_key(),
        )
        self.oracle.told(self.levels, result.stats.disks)
        return result

    def _is_quiet(self) -> bool:
        return not any(not attempt.over for attempt in self.oracle.attempts)

    def _params(
        self,
        snapshot: Snapshot,
        published: Manifest | None,
        checkpoint: str,
        sequence: int,
        term: int,
        node: Machine,
    ) -> ReplicateParams:
        held = {disk.disk_key: disk for disk in published.disks} if published else {}
        now = runtime.wall_time()
        valid_s = 600.0
        if self.expired:
            self.expired = False
            valid_s = -300.0
        head = Manifest(
            checkpoint_id=checkpoint,
            group_id=GROUP,
            plan="plan",
            plan_revision=1,
            catalog_id="cat",
            generation=0,
            epoch=self.epoch,
            term=term,
            sequence=sequence,
            parent=published.checkpoint_id if published else None,
            source_site="alpha",
            target_site="beta",
            level="machine",
            ordered_at=float(self.number),
            taken_at=snapshot.taken_at,
            machines=(),
            disks=(),
        )
        grant = Grant(
            grant_id=f"gr-{checkpoint}-{term}",
            catalog_id="cat",
            generation=0,
            plan="plan",
            group_id=GROUP,
            session_id=f"se-{checkpoint}",
            source_site="alpha",
            target_site="beta",
            source_node="alpha-1",
            target_node=node.name,
            source_thumbprint=self.alpha.identity.tls.peer.thumbprint,
            target_thumbprint=node.identity.tls.peer.thumbprint,
            epoch=self.epoch,
            term=term,
            disks=tuple(
                GrantDisk(
                    disk_key=disk.disk_key,
                    size_bytes=disk.size_bytes,
                    source_point=snapshot.point_id,
                    base=held[disk.disk_key].source_point if disk.disk_key in held else None,
                )
                for disk in snapshot.disks
            ),
            not_before=now - 5,
            not_after=now + valid_s,
        )
        transport = Transport.model_construct(
            connections=self.connections,
            per_disk_window=self.level,
            window_levels=self.levels,
            intermediate_checkpoint_window=self.mark,
            compression=self.compression,
        )
        told = self.told.get(checkpoint, {})
        if told and self._hit("overclaim", at=0.3):  # then what is told was never durable, or never written
            sizes = {disk.disk_key: disk.size_bytes for disk in snapshot.disks}
            told = {key: (draft, ((0, sizes[key]),)) for key, (draft, _) in told.items()}
        return ReplicateParams.model_construct(
            grant=sign(grant, grant_private()),
            address="" if self.dials else self.alpha.address,
            manifest=head,
            disks=tuple(
                ReplicateDisk(
                    disk_key=disk.disk_key,
                    size_bytes=disk.size_bytes,
                    incremental=disk.incremental,
                    base_point=held[disk.disk_key].point if disk.disk_key in held else None,
                    base_root=held[disk.disk_key].tree_root if disk.disk_key in held else None,
                    reason=disk.reason,
                    draft_key=told[disk.disk_key][0] if disk.disk_key in told else None,
                    durable=told[disk.disk_key][1] if disk.disk_key in told else (),
                )
                for disk in snapshot.disks
            ),
            transport=transport,
        )

    def _sweep(self) -> None:
        """After all, nothing is left but what was published."""
        for machine in (*self.betas, *self.betas):  # what another node had open is left to the next sweep
            self._ensure(machine, machine.start_target)
            process = machine.process
            assert process is not None

            def work(machine: Machine = machine) -> None:
                resume.sweep(SimTarget(self.pool), self.manifests, machine.files.root() / "journals", ())  # type: ignore[arg-type]

            for attempt in range(100):
                if not [a for a in self.oracle.attempts if a.process is process and not a.over]:
                    break
                self.hub.sleep(5.0)
                if attempt == 99:
                    raise Violation("I13: an attempt that was left behind never ends")
            task = self.hub.spawn(process, work, "sweep")
            while not task.done:
                self.hub.block(task.waiters, 1.0)
        wanted = {disk["point"] for body in self.oracle.published.values() for disk in body["disks"]}
        left = (set(self.pool.points) - wanted) | set(self.pool.drafts)
        if left:
            raise Violation(f"I3: a sweep left {sorted(left)}; {self.hub.problems}; {dict(self.counts)}")
        for machine in self.betas:
            if machine.window is not None and machine.window.in_flight():
                raise Violation(f"I10: {machine.window.in_flight()} bytes of credit never came back")


_LARGE = frozenset(kind for kind in KINDS if hasattr(World, "_do_" + kind.replace("-", "_")))


def play(seed: int, **options: Any) -> World:
    """Play one schedule; the stage has to be set."""
    world = World(seed, **options)
    gc.disable()
    watch = _Watch(logging.ERROR)
    logger = logging.getLogger("farshore")
    level = logger.level
    logger.addHandler(watch)
    logger.setLevel(logging.ERROR)
    propagate, logger.propagate = logger.propagate, False
    try:
        world.run()
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(watch)
        gc.enable()
    return world


@dataclass
class Report:
    """What many schedules did."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
