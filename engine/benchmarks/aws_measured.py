"""What is measured of the block interface of EBS, in a process of its own: ``python -m benchmarks.aws_measured ...``.

    memory URL GIB FOLDER             # a listing of all changes, reads in between, a journal of them
    throughput URL MIB THREADS        # our writer and reader beside bare boto3, by turns

Prints what it found as JSON.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from farshore.errors import NotFound
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.ebs import BLOCK, Ebs, SnapshotState
from farshore.platforms.aws.journal import DraftFacts, Journals
from farshore.platforms.aws.pacing import RATES
from farshore.platforms.aws.settings import AwsSettings
from farshore.platforms.aws.source import AwsSource
from farshore.platforms.aws.target import AwsDraft, AwsTarget
from farshore.platforms.contract import Snapshot, SnapshotDisk
from farshore.replication.sessions import Listing
from farshore.units import GIB, MIB

_KEY: Final = "i-0123456789abcdef0/sda1"
_OLDER, _NEWER = "snap-00000000000000001", "snap-00000000000000002"
#: Extents in one answer of a source, as the data path asks for them.
_PAGE: Final = 4096
#: Of so many changed blocks one is read.
_READ_EVERY: Final = 4000
_ROUNDS: Final = 5


def _account(url: str, folder: Path) -> Account:
    return Account(
        AwsSettings(
            region="eu-central-1",
            zone="eu-central-1a",
            bucket="none",
            scratch=str(folder),
            endpoint=url,
            api_rates=dict.fromkeys(RATES, 1e6),  # the engine is measured, not an account
        )
    )


def _point(size_bytes: int) -> Snapshot:
    return Snapshot(
        point_id="pt-2",
        group_id="grp",
        taken_at=0.0,
        level="machine",
        machines=(),
        disks=(SnapshotDisk(_KEY, size_bytes, incremental=True),),
        evidence={"ebs": {_KEY: {"snapshot": _NEWER, "base": _OLDER}}},
    )


class _Completed(Ebs):
    """The peer has no EC2 that could be asked for a snapshot's state."""

    def state(self, snapshot_id: str) -> SnapshotState | None:
        return SnapshotState(snapshot_id, "completed", "", "", 0, 0.0, {})


def _facts(_machine_id: str) -> Any:
    raise NotFound("there is no machine", code="machine-not-found")


def memory(url: str, gib: int, folder: Path) -> dict[str, Any]:
    """Go through all changes of a volume as a source and as a target, and return how much memory that took."""
    account = _account(url, folder)
    source = AwsSource(account, _facts, _Completed(account))
    point = _point(gib * GIB)
    reader = source.reader(point, _KEY)
    buffer = memoryview(bytearray(BLOCK))
    journals = Journals(folder / "drafts")
    journals.write(DraftFacts("one", _KEY, gib * GIB, None, "", 0.0))
    blocks = journals.open("one")
    digest = sha256(b"").digest()
    next(source.changed(point, _KEY, "pt-1"))
    reader.read_into(0, buffer)  # everything that is there only once has been there
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    began = time.monotonic()
    listing = Listing(lambda: source.changed(point, _KEY, "pt-1"))
    at, more, changed, reads = 0, True, 0, 0
    while more:
        rows, more = listing.page(at, _PAGE)
        for offset, length, _zero in rows:
            at = offset + length
            for index in range(offset // BLOCK, at // BLOCK):
                changed += 1
                blocks.touch(index)
                blocks.written(index, digest)
                if changed % _READ_EVERY == 0:
                    reader.read_into(index * BLOCK, buffer)
                    reads += 1
    blocks.flush()
    sealed = sum(1 for _index, one in blocks.digests() if one is not None)
    blocks.close()
    journals.remove("one")
    return {
        "before_mib": round(before / MIB, 1),
        "peak_mib": round(_status("VmHWM") / MIB, 1),
        "changed_blocks": changed,
        "digests": sealed,
        "reads": reads,
        "seconds": round(time.monotonic() - began, 1),
    }


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel tells no {name}")


class _Begun(AwsTarget):
    """A target whose draft is begun already: there is no EC2 to ask."""

    def begun(self, size_bytes: int) -> AwsDraft:
        facts = DraftFacts("one", _KEY, size_bytes, None, "", time.time(), _NEWER)
        self._journals.write(facts)
        return AwsDraft(self, self._ebs, facts, self._journals.open("one"))


def throughput(url: str, mib: int, threads: int, folder: Path) -> dict[str, Any]:
    """Write and read ``mib`` by turns: with our target and source, and with nothing but boto3."""
    account = _account(url, folder)
    data = memoryview(bytes(range(256)) * (2 * BLOCK // 256))
    chunks = range(mib)
    size = mib * MIB
    draft = _Begun(account).begun(size)
    source = AwsSource(account, _facts, _Completed(account))
    point = _point(size)
    client = boto3.Session(region_name="eu-central-1").client(
        "ebs",
        endpoint_url=url,
        config=Config(retries={"mode": "standard", "total_max_attempts": 1}, max_pool_connections=threads + 4),
    )

    def write(chunk: int) -> None:
        draft.write(chunk * MIB, data)

    def bare_write(chunk: int) -> None:
        for index in (2 * chunk, 2 * chunk + 1):
            block = bytes(data[:BLOCK])
            client.put_snapshot_block(
                SnapshotId=_NEWER,
                BlockIndex=index,
                BlockData=block,
                DataLength=BLOCK,
                Checksum=base64.b64encode(sha256(block).digest()).decode(),
                ChecksumAlgorithm="SHA256",
            )

    def reading() -> Callable[[int], None]:
        reader = source.reader(point, _KEY)

        def read(chunk: int) -> None:
            reader.read_into(chunk * MIB, memoryview(bytearray(MIB)))

        return read

    def bare_reading() -> Callable[[int], None]:
        tokens: dict[int, str] = {}
        while len(tokens) < 2 * mib:
            page = client.list_snapshot_blocks(SnapshotId=_NEWER, MaxResults=10_000, StartingBlockIndex=len(tokens))
            tokens |= {row["BlockIndex"]: row["BlockToken"] for row in page["Blocks"]}

        def read(chunk: int) -> None:
            for index in (2 * chunk, 2 * chunk + 1):
                reply = client.get_snapshot_block(SnapshotId=_NEWER, BlockIndex=index, BlockToken=tokens[index])
                block = reply["BlockData"].read()
                if base64.b64encode(sha256(block).digest()).decode() != reply["Checksum"]:
                    raise AssertionError("a block is not what was said")

        return read

    rates: dict[str, list[float]] = {"write": [], "bare_write": [], "read": [], "bare_read": []}
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(_ROUNDS + 1):
            for name, make in (
                ("write", lambda: write),
                ("bare_write", lambda: bare_write),
                ("read", reading),
                ("bare_read", bare_reading),
            ):
                work = make()
                began = time.monotonic()
                for _ in pool.map(work, chunks):
                    pass
                if turn:  # the first one opens the connections
                    rates[name].append(mib / (time.monotonic() - began))
    draft.close()
    return {name: [round(rate, 1) for rate in found] for name, found in rates.items()}


def main() -> None:
    """Measure what the command line says."""
    what, url, *words = sys.argv[1:]
    if what == "memory":
        found = memory(url, int(words[0]), Path(words[1]))
    else:
        found = throughput(url, int(words[0]), int(words[1]), Path(words[2]))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
