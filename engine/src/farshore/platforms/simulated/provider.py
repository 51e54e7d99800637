"""The provider as a process of its own: ``python -m farshore.platforms.simulated.provider SETTINGS.json``.

It answers on a local socket, one JSON document a line each way, and appends each call to a file. Whoever calls may be
killed at any time; the account goes on.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from farshore.platforms.simulated.account import LATENCIES, Account, Faults, Limits

#: The longest line: an inventory of thousands of machines.
_LINE_BYTES = 64 << 20


class Provider:
    """One account behind a socket."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._socket = Path(settings["socket"])
        self._log = Path(settings["log"]).open("a", encoding="utf-8")  # noqa: SIM115 - for as long as it lives
        self._account = Account(
            limits=Limits(**settings.get("limits", {})),
            faults=Faults(**settings.get("faults", {})),
            seed=int(settings.get("seed", 0)),
            latencies={
                **LATENCIES,
                **{name: (float(low), float(high)) for name, (low, high) in settings.get("latencies", {}).items()},
            },
            boot_s=tuple(settings.get("boot_s", (0.3, 1.0))),
            record=self._record,
        )

    async def serve(self) -> None:
        """Answer until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = await asyncio.start_unix_server(self._connected, self._socket, limit=_LINE_BYTES)
        async with server:
            await stop.wait()
        self._log.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                call = json.loads(line)
                reply = await self._answer(str(call["operation"]), call["params"], str(call.get("caller", "")))
                if reply is None:
                    break
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, json.JSONDecodeError):
            pass
        finally:
            writer.close()

    async def _answer(self, operation: str, params: dict[str, Any], caller: str) -> dict[str, Any] | None:
        pending = self._account.begin(operation, params, time.time(), caller)
        # Carried out whoever hangs up meanwhile.
        await asyncio.shield(asyncio.sleep(max(0.0, pending.ends_at - time.time())))
        reply = self._account.finish(pending, time.time())
        return None if pending.lost else reply

    def _record(self, entry: dict[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()


def main() -> None:
    """Run until SIGTERM."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asyncio.run(Provider(settings).serve())


if __name__ == "__main__":
    main()
