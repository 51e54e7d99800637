"""The process that looks into one guest: parameters on standard input, the result on standard output, both JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from farshore.model.guest import MachinePrepareParams
from farshore.recovery.guest.prepare import prepare
from farshore.recovery.guest.volumes import RawDisk


def main() -> None:
    """Prepare one guest."""
    job = json.load(sys.stdin)
    disks = [RawDisk(item["disk_id"], Path(item["path"]), item["boot"]) for item in job["disks"]]
    result = prepare(MachinePrepareParams.model_validate(job["params"]), disks)
    sys.stdout.write(result.model_dump_json())


main()
