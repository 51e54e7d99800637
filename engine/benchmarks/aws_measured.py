"""What is measured of the block interface of EBS, in a process of its own: ``python -m benchmarks.aws_measured ...``.

    memory URL GIB FOLDER             # a listing of all changes, reads in between, a journal of them
    passes URL MIB THREADS FOLDER     # our writer and reader, and bare boto3: each as it is asked for by the input

The first one prints what it found as JSON.
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


class Passes:
    """Ways through the whole of a disk of ``mib``, with so many threads: our target and source, and boto3 alone."""

    def __init__(self, url: str, mib: int, threads: int, folder: Path) -> None:
        self._mib, self._pool = mib, ThreadPoolExecutor(threads)
        account = _account(url, folder)
        self._data = memoryview(bytes(range(256)) * (2 * BLOCK // 256))
        self._draft = _Begun(account).begun(mib * MIB)
        self._source = AwsSource(account, _facts, _Completed(account))
        self._client = boto3.Session(region_name="eu-central-1").client(
            "ebs",
            endpoint_url=url,
            config=Config(retries={"mode": "standard", "total_max_attempts": 1}, max_pool_connections=threads + 4),
        )
        self._ways: dict[str, Callable[[], Callable[[int], None]]] = {
            "write": lambda: self._write,
            "bare_write": lambda: self._bare_write,
            "read": self._reading,
            "bare_read": self._bare_reading,
        }

    def go(self, name: str) -> float:
        """Go through it once; return the seconds that it took."""
        work = self._ways[name]()
        began = time.monotonic()
        for _ in self._pool.map(work, range(self._mib)):
            pass
        return time.monotonic() - began

    def close(self) -> None:
        """Give back what is open."""
        self._pool.shutdown()
        self._draft.close()

    def _write(self, chunk: int) -> None:
        self._draft.write(chunk * MIB, self._data)

    def _bare_write(self, chunk: int) -> None:
        for index in (2 * chunk, 2 * chunk + 1):
            block = bytes(self._data[:BLOCK])
            self._client.put_snapshot_block(
                SnapshotId=_NEWER,
                BlockIndex=index,
                BlockData=block,
                DataLength=BLOCK,
                Checksum=base64.b64encode(sha256(block).digest()).decode(),
                ChecksumAlgorithm="SHA256",
            )

    def _reading(self) -> Callable[[int], None]:
        reader = self._source.reader(_point(self._mib * MIB), _KEY)

        def read(chunk: int) -> None:
            reader.read_into(chunk * MIB, memoryview(bytearray(MIB)))

        return read

    def _bare_reading(self) -> Callable[[int], None]:
        client, tokens = self._client, dict[int, str]()
        while len(tokens) < 2 * self._mib:
            page = client.list_snapshot_blocks(SnapshotId=_NEWER, MaxResults=10_000, StartingBlockIndex=len(tokens))
            tokens |= {row["BlockIndex"]: row["BlockToken"] for row in page["Blocks"]}

        def read(chunk: int) -> None:
            for index in (2 * chunk, 2 * chunk + 1):
                reply = client.get_snapshot_block(SnapshotId=_NEWER, BlockIndex=index, BlockToken=tokens[index])
                block = reply["BlockData"].read()
                if base64.b64encode(sha256(block).digest()).decode() != reply["Checksum"]:
                    raise AssertionError("a block is not what was said")

        return read


def serve(url: str, mib: int, threads: int, folder: Path) -> None:
    """Go through a disk in each way that a line of the input names, and answer with the seconds that it took."""
    folder.mkdir()
    passes = Passes(url, mib, threads, folder)
    try:
        for line in sys.stdin:
            sys.stdout.write(f"{passes.go(line.strip())}\n")
            sys.stdout.flush()
    finally:
        passes.close()


def main() -> None:
    """Measure what the command line says."""
    what, url, *words = sys.argv[1:]
    if what == "memory":
        sys.stdout.write(json.dumps(memory(url, int(words[0]), Path(words[1]))) + "\n")
    else:
        serve(url, int(words[0]), int(words[1]), Path(words[2]))


if __name__ == "__main__":
    main()
