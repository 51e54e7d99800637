"""The platform inside a site's namespaces, as a node has it, called from a test outside.

Run with a socket's path and the platform's settings as JSON; :func:`inside` does that and gives a proxy.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from farshore.platforms.kvm import open_kvm
from farshore.testing.lab.site import Site


class _Manager(BaseManager):
    pass


def _serve(path: str, settings: str) -> None:
    platform = open_kvm(json.loads(settings))
    _Manager.register("compute", callable=lambda: platform.compute)
    _Manager(address=path, authkey=b"test").get_server().serve_forever()


@contextlib.contextmanager
def inside(site: Site, folder: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """Yield a proxy of the site's ``Compute``."""
    path = folder / "compute"
    child = subprocess.Popen(site.argv(sys.executable, __file__, str(path), json.dumps(settings)), cwd="/")
    try:
        deadline = time.monotonic() + 90
        _Manager.register("compute")
        manager = _Manager(address=str(path), authkey=b"test")
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                manager.connect()
                break
            assert child.poll() is None, "the platform did not start inside the site"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield manager.compute()  # type: ignore[attr-defined]
    finally:
        child.terminate()
        child.wait()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
