"""The figure ``aws-calls``: what an incremental copy of a twentieth of a disk asks of the block interface of EBS.

Two node processes copy from files to AWS and from AWS to files, before the double of AWS. The least that will do is one
call for each block that overlaps a change, one for each page of a list, and the beginning and the end of a snapshot.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.model.plan import Transport
from farshore.testing.sites import Sites
from farshore.units import GIB, MIB

from benchmarks.aws_peer import environment
from benchmarks.results import Check, Figure
from benchmarks.workshop import Workshop

_BLOCK: Final = 512 * 1024
_SHARE: Final = 0.05
_BOUND: Final = 1.02
_LISTS: Final = ("ListChangedBlocks", "ListSnapshotBlocks")


def figure(shop: Workshop, size: str) -> Figure:
    """Measure it."""
    result = Figure("aws-calls")
    gib = 4 if size == "full" else 1
    os.environ.update(environment())
    with AwsDouble(shop.run / "aws") as aws:
        aws_site.make_bucket(aws)
        for name, measure in (("writing", _to_aws), ("reading", _from_aws)):
            calls, blocks, least = measure(aws, shop.run / name, gib)
            shop.say(f"{name}: {calls}, {blocks} blocks")
            result.checks.append(Check(name, sum(calls.values()) / least, "<=", _BOUND, "of the least"))
            result.details[name] = {"calls": dict(calls), "changed_blocks": blocks, "least": least}
    return result


def _places(size: int, share: float) -> list[int]:
    """Return places for small writes, each in a block of its own."""
    blocks = size // _BLOCK
    chosen = random.Random(1).sample(range(blocks), int(blocks * share))  # noqa: S311
    return [index * _BLOCK + 4096 for index in sorted(chosen)]


def _cycle(both: Sites) -> None:
    snapshot = both.point()
    reply = both.replicate(both.params(snapshot))
    if "result" not in reply:
        raise AssertionError(str(reply))
    both.release(snapshot, applied=True)


def _sites(folder: Path, disks: dict[str, dict[str, int]], **platforms: dict[str, Any]) -> Sites:
    folder.mkdir()
    both = Sites(folder, disks, Transport(audit_fraction=0), platforms)
    both.start_source()
    return both


def _counted(aws: AwsDouble) -> Counter[str]:
    return Counter(call.operation for call in aws.calls() if call.service == "ebs")


def _to_aws(aws: AwsDouble, folder: Path, gib: int) -> tuple[Counter[str], int, int]:
    both = _sites(folder, {"db": {"vda": gib * GIB}}, target=aws_site.config(aws, folder / "scratch"))
    try:
        machine = both.machine("db")
        machine.write("vda", 0, b"\1" * MIB)
        _cycle(both)
        places = _places(gib * GIB, _SHARE)
        for place in places:
            machine.write("vda", place, b"\2" * 512)
        aws.forget_calls()
        _cycle(both)
        return _counted(aws), len(places), len(places) + 2
    finally:
        both.end()


def _from_aws(aws: AwsDouble, folder: Path, gib: int) -> tuple[Counter[str], int, int]:
    """The volume is one of 1 GiB that was made larger."""
    instance = aws_site.Instance(aws, ["sda1"])
    key = instance.key("sda1")
    if gib > 1:
        instance.ec2.modify_volume(VolumeId=instance.volumes[key], Size=gib)
    both = _sites(folder, {}, source=aws_site.config(aws, folder / "scratch"))
    both.machine_ids = (instance.machine_id,)
    try:
        instance.write(key, 0, b"\1" * MIB)
        _cycle(both)
        places = _places(gib * GIB, _SHARE)
        for place in places:
            instance.write(key, place, b"\2" * 512)
        aws.forget_calls()
        _cycle(both)
        calls = _counted(aws)
        pages = -(-len(places) // 10_000)
        return calls, len(places), len(places) + pages
    finally:
        both.end()
