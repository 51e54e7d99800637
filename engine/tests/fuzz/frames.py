"""Random bytes against whatever reads bytes of others: ``python -m fuzz.frames --seconds 600``; see `make fuzz`.

Where atheris is installed it guides the inputs by coverage; else they are mutations of recorded ones. The rule for each
target: it returns, or raises one of our errors; it takes no more memory than its limits say.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from farshore.blocks import tree
from farshore.checkpoints import manifest
from farshore.errors import FarshoreError
from farshore.journal import log, ranges
from farshore.transport import frames
from farshore.transport.frames import Type
from farshore.transport.records import SUITES, Keys, Secured

GOLDEN = Path(__file__).parents[1] / "wire" / "golden" / "session.txt"
KEYS = [Keys(SUITES["TLS_AES_128_GCM_SHA256"], bytes([number]) * 32) for number in (1, 2)]
PAYLOAD = memoryview(bytes(frames.MAX_PAYLOAD))


def frame(data: bytes) -> None:
    """A whole stream: headers as they come, meta parts, payloads."""
    at = 0
    while at + frames.HEADER.size <= len(data):
        header = frames.decode_header(data[at : at + frames.HEADER.size])
        if header.meta_size > frames.MAX_META or header.payload_size > frames.MAX_PAYLOAD:
            raise AssertionError("a header over the limits was let in")
        at += frames.HEADER.size
        meta = data[at : at + header.meta_size]
        if len(meta) < header.meta_size:
            return
        frames.check_meta(header, meta)
        at += header.meta_size
        payload = memoryview(data)[at : at + header.payload_size]
        at += header.payload_size
        decode(header.type, meta, payload)


def sealed_frame(data: bytes) -> None:
    """The same with checksums put right, so that what is behind them is reached."""
    if len(data) < 8:
        return
    kind, body = data[0] % 16, data[1:]
    payload_size = int.from_bytes(body[:2], "big") if kind == Type.DATA else 0
    meta = body[2 : 2 + frames.MAX_META]
    head = frames._GUARDED.pack(frames.MAGIC, kind, 0, 0, 1, len(meta), payload_size, crc32(meta))
    frame(head + crc32(head).to_bytes(4, "big") + meta + bytes(PAYLOAD[:payload_size]))


def decode(kind: Type, meta: bytes, payload: memoryview) -> None:
    if kind in {Type.DATA, Type.ZERO}:
        found = frames.Data.decode(meta, payload.nbytes)
        found.check_tiles([(offset, length) for offset, length, _ in found.pieces][:1])
        return
    {
        Type.HELLO: frames.Hello.decode,
        Type.OPEN: frames.Open.decode,
        Type.OPENED: frames.Opened.decode,
        Type.LIST: frames.List.decode,
        Type.EXTENTS: frames.Extents.decode,
        Type.READ: frames.Read.decode,
        Type.DIGEST: lambda one: frames.Digests.decode(one, answer=False),
        Type.DIGESTS: lambda one: frames.Digests.decode(one, answer=True),
        Type.CLOSE: bytes,
        Type.CLOSED: bytes,
        Type.ERROR: frames.decode_error,
    }[kind](meta)


def record(data: bytes) -> None:
    """What comes on a connection after its handshake, from whoever is at the other end."""
    near, far = socket.socketpair()
    with near:
        near.sendall(data)
    with Secured(far, *KEYS, None, b"") as connection:
        KEYS[0].number = 0
        seen = 0
        with contextlib.suppress(ssl.SSLError):
            while got := connection.recv(4096):
                seen += len(got)
        if seen > len(data) or connection.recv(1):
            raise AssertionError("more came out than went in")


def sealed_record(data: bytes) -> None:
    """The same with records as a peer that has the keys may write them: a length, a type, and so much of the rest."""
    keys, at, come = KEYS[0], 0, b""
    for number in itertools.count():
        if at + 2 > len(data):
            break
        inner = data[at + 2 : at + 2 + data[at]] + data[at + 1 : at + 2]
        header = struct.pack("!BHH", 23, 0x0303, len(inner) + 16)
        come += header + keys.cipher.encrypt((keys.iv ^ number).to_bytes(12, "big"), inner, header)
        at += 2 + data[at]
    record(come)


def journal(data: bytes) -> None:
    """A journal that somebody wrote over."""
    for record, _ in log.decode(data):
        if len(record.body) > log.BODY_MAX:
            raise AssertionError("a record over the limit was let in")
    try:
        for start, stop in ranges.decode_ranges(data[:4096]):
            if not 0 <= start <= stop:
                raise AssertionError("a range runs backwards")
    except IndexError:
        pass  # the body ends inside of a number; a CRC guards it


def stored_manifest(data: bytes) -> None:
    """An object in a manifest's place."""
    manifest.is_refusal(data)
    manifest.decode(data, "groups/grp/0000000001-cp-1.json")


def stored_tree(data: bytes) -> None:
    """The record of a digest tree, and a node of it."""
    tree.open_tree(data[:32].ljust(32), lambda _digest: data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frame": frame,
    "sealed-frame": sealed_frame,
    "record": record,
    "sealed-record": sealed_record,
    "journal": journal,
    "manifest": stored_manifest,
    "tree": stored_tree,
}


def one(target: Callable[[bytes], None], data: bytes) -> None:
    with contextlib.suppress(FarshoreError):
        target(data)


def seeds(name: str) -> list[bytes]:
    """Return inputs to begin with."""
    found = []
    for line in GOLDEN.read_text(encoding="ascii").splitlines():
        _, head, payload = line.split(" ")
        whole = bytes.fromhex(head)
        found.append(
            bytes([whole[4]]) + b"\0\0" + whole[28:] if name == "sealed-frame" else whole + bytes.fromhex(payload)
        )
    if name == "record":
        return [b"\x17\x03\x03\x00\x20" + bytes(32), b"\x15\x03\x03\x00\x02\x02\x28"]
    if name == "sealed-record":
        update, ticket = bytes([5, 22, 24, 0, 0, 1, 1]), bytes([6, 22, 4, 0, 0, 2, 0, 0])
        return [bytes([4, 23]) + b"data", ticket + bytes([1, 23]) + b"x", update, bytes([2, 21, 1, 0])]
    if name == "journal":
        return [log.encode(0, 1, b"{}") + log.encode(1, 2, b"\x01\x02\x80\x01\x05") + log.encode(2, 3, b"{}")]
    if name in {"manifest", "tree"}:
        return [b'{"checkpoint_id": "cp-1", "disks": [], "group_id": "grp"}', b'{"refused_for": "x"}', bytes(50)]
    return found


def mutate(rng: random.Random, data: bytes) -> bytes:
    body = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(body) + 1)
        kind = rng.randrange(5)
        if kind == 0 and body:
            body[place % len(body)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            body[place:place] = rng.randbytes(rng.randint(1, 8))
        elif kind == 2:
            del body[place : place + rng.randint(1, 16)]
        elif kind == 3:
            body[place : place + 4] = rng.choice((b"\xff" * 4, b"\x80\0\0\0", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        else:
            body[place:place] = bytes(body[: rng.randint(0, 64)])
    return bytes(body)


def mutations(name: str, seconds: float, seed: int, count: int | None = None) -> int:
    """Try mutations for a time, or so many; return how many there were."""
    rng = random.Random(f"{name}{seed}")
    corpus = seeds(name)
    target = TARGETS[name]
    tried = 0
    end = time.monotonic() + seconds
    while tried != count if count is not None else tried % 1000 or time.monotonic() < end:
        data = mutate(rng, rng.choice(corpus))
        try:
            one(target, data)
        except Exception:
            sys.stderr.write(f"target {name}, input {data.hex()}\n")
            raise
        tried += 1
    return tried


GUIDED = """
import sys, atheris
with atheris.instrument_imports(include=["farshore.transport", "farshore.journal", "farshore.checkpoints.manifest"]):
    from fuzz import frames
target = frames.TARGETS[sys.argv.pop(1)]
atheris.Setup(sys.argv, lambda data: frames.one(target, data))
atheris.Fuzz()
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--seconds", type=float, default=600, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        guided = False
    else:
        guided = True
    for name in TARGETS:
        tried = mutations(name, arguments.seconds / 2 if guided else arguments.seconds, arguments.seed)
        sys.stdout.write(f"{name}: {tried} mutations, all returned or refused\n")
        if guided:
            with tempfile.TemporaryDirectory() as corpus:
                for index, data in enumerate(seeds(name)):
                    (Path(corpus) / str(index)).write_bytes(data)
                limits = [f"-max_total_time={int(arguments.seconds / 2)}", f"-seed={arguments.seed}", "-max_len=65536"]
                done = subprocess.run(
                    [sys.executable, "-c", GUIDED, name, *limits, "-rss_limit_mb=1024", "-print_final_stats=1", corpus],
                    check=False,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            runs = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
            sys.stdout.write(f"{name}: guided by coverage, {runs[-1].split()[-1] if runs else 0} inputs\n")
            if done.returncode:
                sys.stdout.write(done.stderr[-4000:])
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
