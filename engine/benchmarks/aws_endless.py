"""The block interface of EBS before volumes that are computed: of any size, and nothing of them is held.

Block ``i`` of every snapshot holds the same bytes; one in twenty has changed. What is written is taken and forgotten.
For measurements of a client: the peer costs as little as a peer in Python can.

    python -m benchmarks.aws_endless GIB [S]     # prints its port and serves until its input ends; each block takes S
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import threading
import time
from hashlib import sha256
from typing import Any, Final

from doubles.aws.http_server import Reply, Request, Server

BLOCK: Final = 512 * 1024
_DATA: Final = random.Random(7).randbytes(BLOCK)  # noqa: S311
_CHECKSUM: Final = base64.b64encode(sha256(_DATA).digest()).decode()
#: Changed blocks are spread without a pattern that a list could fold.
_SPREAD: Final = 2_654_435_761
_SHARE: Final = (1 << 32) // 20
_JSON: Final = {"Content-Type": "application/json"}


def is_changed(index: int) -> bool:
    """Say whether a block differs from the older snapshot's."""
    return index * _SPREAD % (1 << 32) < _SHARE


class Endless:
    """Snapshots of ``gib``. Each call for a block is answered after ``delay_s``: as by a service that is far away."""

    def __init__(self, gib: int, delay_s: float = 0.0) -> None:
        self._gib = gib
        self._delay_s = delay_s
        self._blocks = gib * 2048
        self.calls: dict[str, int] = {}

    def handle(self, request: Request) -> Reply:
        """Answer one request."""
        parts = request.path.strip("/").split("/")
        if request.target == "/calls":
            return _json(self.calls)
        if self._delay_s and (request.method == "PUT" or len(parts) == 4):
            time.sleep(self._delay_s)
        if request.method == "PUT":
            return self._counted("PutSnapshotBlock", Reply(201, {"x-amz-Checksum": request.headers["x-amz-checksum"]}))
        if request.method == "POST":
            if len(parts) == 1:
                started = {"SnapshotId": "snap-0123456789abcdef0", "BlockSize": BLOCK, "VolumeSize": self._gib}
                return self._counted("StartSnapshot", _json(started, 201))
            return self._counted("CompleteSnapshot", _json({"Status": "pending"}, 202))
        if len(parts) == 4:
            head = {
                "Content-Type": "application/octet-stream",
                "x-amz-Data-Length": str(BLOCK),
                "x-amz-Checksum": _CHECKSUM,
                "x-amz-Checksum-Algorithm": "SHA256",
            }
            return self._counted("GetSnapshotBlock", Reply(200, head, _DATA))
        if parts[-1] == "changedblocks":
            return self._counted("ListChangedBlocks", self._list(request, changed=True))
        return self._counted("ListSnapshotBlocks", self._list(request, changed=False))

    def _list(self, request: Request, *, changed: bool) -> Reply:
        query = request.query
        at = int(query.get("pageToken") or query.get("startingBlockIndex") or 0)
        most = int(query.get("maxResults") or 10_000)
        rows: list[dict[str, Any]] = []
        while at < self._blocks and len(rows) < most:
            if not changed:
                rows.append({"BlockIndex": at, "BlockToken": _token(at)})
            elif is_changed(at):
                rows.append({"BlockIndex": at, "FirstBlockToken": _token(at), "SecondBlockToken": _token(at)})
            at += 1
        found = {
            "ChangedBlocks" if changed else "Blocks": rows,
            "ExpiryTime": time.time() + 7 * 86_400,
            "VolumeSize": self._gib,
            "BlockSize": BLOCK,
            **({"NextToken": str(at)} if at < self._blocks else {}),
        }
        return _json(found)

    def _counted(self, operation: str, reply: Reply) -> Reply:
        self.calls[operation] = self.calls.get(operation, 0) + 1
        return reply


def _token(index: int) -> str:
    """Return a token as long as the service's."""
    return f"AAUBA{index:091d}"


def _json(document: Any, status: int = 200) -> Reply:
    return Reply(status, _JSON, json.dumps(document).encode())


def main() -> None:
    """Serve."""
    server = Server(Endless(int(sys.argv[1]), *map(float, sys.argv[2:])).handle)
    threading.Thread(target=server.serve, daemon=True).start()
    os.write(1, f"{server.port}\n".encode())
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
