"""What a node needs to play files of tasks: their bundles, its secrets, and a limit of how many play at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Corruption, Unavailable
from farshore.model.task import HookResult
from farshore.recovery import bundle
from farshore.recovery.hooks.run import Job, Settings, clean, run, why_not
from farshore.recovery.secrets import Secrets

#: Bundles that a node keeps; those of plans that changed go with time.
MOST_KEPT: Final = 32
_TURN_S: Final = 0.5


class Player:
    """Plays files of tasks, ``most`` at once: each takes a processor and some 150 MiB while it does.

    ``fetch`` returns a bundle by its digest, from the control plane.
    """

    def __init__(
        self, settings: Settings, secrets: Secrets, fetch: Callable[[str], bytes], kept: Path, most: int
    ) -> None:
        self._settings = settings
        self._secrets = secrets
        self._fetch = fetch
        self._kept = kept
        self._turns = threading.BoundedSemaphore(most)
        clean(settings)

    def kit(self) -> tuple[str, tuple[str, ...]]:
        """Return why this node can play no hooks (empty: it can), and the names of the secrets that it has."""
        return why_not(self._settings), self._secrets.names()

    def play(
        self,
        digest: str,
        file: str,
        timeout_s: float,
        *,
        is_cancelled: Callable[[], bool],
        context: Mapping[str, Any],
        variables: Mapping[str, Any],
        secrets: Sequence[str] = (),
        host: str | None = None,
    ) -> HookResult:
        """Play ``file`` of a bundle; its time counts from when its turn has come.

        Raises:
            FarshoreError: it could not be begun, or was cancelled.
        """
        job = Job(
            files=self._files(digest),
            file=file,
            timeout_s=timeout_s,
            context=context,
            vars=variables,
            secrets={name: self._secrets.read(name) for name in secrets},
            host=host,
        )
        while not self._turns.acquire(timeout=_TURN_S):
            if is_cancelled():
                raise Unavailable("the hook was cancelled before its turn", code="cancelled")
        try:
            return run(job, self._settings, clock=time.monotonic, is_cancelled=is_cancelled)
        finally:
            self._turns.release()

    def _files(self, digest: str) -> dict[str, bytes]:
        path = self._kept / f"{digest}.tar"
        try:
            files = bundle.unpack(path.read_bytes(), digest)
        except (FileNotFoundError, Corruption):
            content = self._fetch(digest)
            files = bundle.unpack(content, digest)
            durable.make_dir(self._kept)
            durable.write(path, content, 0o600)
            self._tidy()
        return files

    def _tidy(self) -> None:
        kept = sorted(self._kept.glob("*.tar"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-MOST_KEPT]:
            path.unlink(missing_ok=True)
