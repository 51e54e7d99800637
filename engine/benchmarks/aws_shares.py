"""The figure ``aws-shares``: two nodes with two processes each write to one account, whose calls are leased to them.

AWS is its double, which counts; the nodes copy machines of files. The rate is so low that all of them want more.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from doubles import aws_site
from doubles.aws import AwsDouble
from doubles.control_process import Control, until
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.platforms.file import FileMachine
from farshore.units import MIB

from benchmarks.aws_peer import environment
from benchmarks.results import Check, Figure

_RATE: Final = 60.0
_MOST: Final = 63
_MEAN: Final = 57.0
_MACHINES: Final = 12
_CALL: Final = "PutSnapshotBlock"


def figure(say: Callable[[str], None], size: str) -> Figure:
    """Measure it."""
    row = Figure("aws-shares")
    folder = Path(tempfile.mkdtemp(prefix="fss-"))
    os.environ.update(environment())
    control = Control(folder / "home").start()
    nodes: list[NodeProcess] = []
    try:
        with AwsDouble(folder / "aws") as aws:
            aws_site.make_bucket(aws)
            rng = random.Random(1)  # noqa: S311
            names = [f"m{number}" for number in range(_MACHINES)]
            for name in names:
                machine = FileMachine.create(folder / "alpha", name, {"vda": (128 if size == "full" else 64) * MIB})
                for offset in range(0, machine.image("vda").stat().st_size, MIB):
                    machine.write("vda", offset, rng.randbytes(MIB))
            nodes = _nodes(folder, control, aws)
            plan = {
                "name": "shop",
                "source_site": "alpha",
                "target_site": "cloud",
                "rpo": "1h",
                "machines": [{"name": name} for name in names],
            }
            until(lambda: control.ok("GET", "/machines?site=alpha")["items"], "alpha is looked at", 120)
            control.ok("PUT", "/plans/shop", {"definition": plan})
            control.ok("POST", "/plans/shop:protect", {"state": "protected"})
            until(lambda: control.ok("GET", "/plans/shop")["state"] == "protected", "the first copies", 900)
            at = sorted(call.at for call in aws.calls(_CALL))
    finally:
        for node in nodes:
            node.close()
        control.kill()
        shutil.rmtree(folder, ignore_errors=True)
    found = _judged(at)
    say(f"{len(at)} calls, at most {found['most']} in a second, {found['mean']:.1f} in the mean")
    row.checks += [
        Check("calls in any second", found["most"], "<=", _MOST),
        Check("calls a second in the mean", found["mean"], ">=", _MEAN),
    ]
    row.details |= found
    return row


def _nodes(folder: Path, control: Control, aws: AwsDouble) -> list[NodeProcess]:
    made = []
    config = aws_site.config(aws, folder / "none", api_rates={_CALL: _RATE})
    for site, name in (("alpha", "alpha-1"), ("cloud", "cloud-1"), ("cloud", "cloud-2")):
        control.ok("PUT", f"/sites/{site}", {"platform": "aws" if site == "cloud" else "file"})
        port = free_port()
        node = NodeProcess(folder, name, site, control.home.node_url, port)
        if site == "cloud":
            node.settings["platform"] = {**config, "scratch": str(folder / f"{name}.scratch")}
            node.settings["workers"] = 2
            node.write()
        wanted = {"site": site, "roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{port}"}
        control.ok("PUT", f"/nodes/{name}", wanted)
        node.enrol(control.ok("POST", f"/nodes/{name}:token")["token"], ca_file=control.home.ca)
        made.append(node)
        node.start()
    for site in ("alpha", "cloud"):
        until(lambda site=site: control.ok("GET", f"/sites/{site}")["inventory_at"], f"inventory of {site}", 120)
    return made


def _judged(at: Sequence[float]) -> dict[str, Any]:
    """Return the most calls in any second, and how many in the mean while all processes write: the middle third."""
    most = max((bisect_left(at, one + 1.0) - index for index, one in enumerate(at)), default=0)
    low, high = len(at) // 3, 2 * len(at) // 3
    return {"most": most, "mean": (high - low) / (at[high] - at[low]), "calls": len(at), "seconds": at[-1] - at[0]}
