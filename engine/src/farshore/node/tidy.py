"""What tasks that never came back left behind: journals, drafts, points that were never published.

A group's next replication removes what its earlier ones left. This is for groups that have no next one: whatever a
journal of this node names, and nobody has touched for ``STALE_AFTER_S``, goes. Work that is under way holds a lock on
its journal and is passed over.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

from farshore.errors import FarshoreError
from farshore.node.log import fields
from farshore.platforms.contract import Platform
from farshore.replication import resume

_log = logging.getLogger(__name__)

#: Longer than any outage after which the control plane would still ask for the same checkpoint again.
STALE_AFTER_S: Final = 2 * 86400.0
EVERY_S: Final = 6 * 3600.0


def tidy(platform: Platform, journal_dir: Path, now: float) -> list[str]:
    """Remove what is stale at ``now`` (seconds since the epoch); return what was removed."""
    try:
        recent = [path.name for path in journal_dir.iterdir() if now - _touched(path) < STALE_AFTER_S]
        removed = resume.sweep(platform.target, platform.manifests, journal_dir, recent)
    except FarshoreError as error:
        _log.warning("tidying up ended early", extra=fields(code=error.code, reason=error.message))
        return []
    except OSError as error:
        # Whatever is wrong with the disk, the tasks that need it will say so; here it can wait.
        _log.warning("tidying up ended early", extra=fields(reason=str(error)))
        return []
    if removed:
        _log.info("left-overs removed", extra=fields(removed=removed))
    return removed


def _touched(folder: Path) -> float:
    """Return when anything in ``folder`` was last written; a file that goes meanwhile does not count."""
    newest = folder.stat().st_mtime
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
