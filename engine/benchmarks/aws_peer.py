"""Processes of the measurements of AWS: the peer, and what is measured before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.links import ROOT
from benchmarks.processes import ProgramFailed

_LIMIT_S = 1800.0


def environment() -> dict[str, str]:
    """Return an environment with our code, the doubles of the tests, and credentials that open nothing."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}/engine:{ROOT}/engine/src:{ROOT}/engine/tests",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def endless(gib: int, delay_s: float = 0.0) -> Iterator[str]:
    """Serve volumes of ``gib`` of which nothing is held; yield the address. Each block takes ``delay_s`` at least."""
    command = [sys.executable, "-m", "benchmarks.aws_endless", str(gib), str(delay_s)]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None:
                raise AssertionError("it was started with its pipes")
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def measured(*words: str) -> dict[str, Any]:
    """Run :mod:`benchmarks.aws_measured` and return what it found."""
    command = [sys.executable, "-m", "benchmarks.aws_measured", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise ProgramFailed(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
