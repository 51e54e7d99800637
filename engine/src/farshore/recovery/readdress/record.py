"""What we have changed in a guest and what was there before, kept in the guest itself, so that it can be undone.

A file that somebody has changed since is nobody's but theirs: it counts as an original again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field

PATH = "/var/lib/farshore/guest.json"
_VERSION = 1


@dataclass(slots=True)
class Record:
    """``files``: for each path what it was (None: it did not exist) and the digest of what we made of it."""

    files: dict[str, tuple[bytes | None, str]] = field(default_factory=dict)

    def original(self, path: str, current: bytes | None) -> bytes | None:
        """Return what a file was before we changed it, ``current`` if we did not, or somebody has since."""
        if path in self.files:
            original, written = self.files[path]
            if digest(current) == written:
                return original
        return current

    def changed_since(self, path: str, current: bytes | None) -> bool:
        """Say whether somebody has changed a file after us."""
        return path in self.files and digest(current) != self.files[path][1]

    def note(self, path: str, original: bytes | None, written: bytes | None) -> None:
        """Note what we make of a file; one that is as it was is forgotten."""
        if original == written:
            self.files.pop(path, None)
        else:
            self.files[path] = (original, digest(written))

    def dump(self) -> bytes | None:
        """Return the record as a file, None if there is nothing to record."""
        if not self.files:
            return None
        files = {
            path: {"original": None if was is None else base64.b64encode(was).decode(), "written": written}
            for path, (was, written) in sorted(self.files.items())
        }
        return json.dumps({"version": _VERSION, "files": files}, indent=1).encode() + b"\n"


def load(data: bytes | None) -> Record:
    """Read a record; one that is not ours, or broken, is an empty one."""
    record = Record()
    try:
        files = json.loads(data or b"{}").get("files", {})
        for path, entry in files.items():
            was = entry["original"]
            record.files[str(path)] = (None if was is None else base64.b64decode(was), str(entry["written"]))
    except (ValueError, AttributeError, KeyError, TypeError):
        return Record()
    return record


def digest(data: bytes | None) -> str:
    """Return a digest of a file, also of one that is not there."""
    return "absent" if data is None else hashlib.sha256(data).hexdigest()
