"""Secrets of a node: plans name them, the node's administrator puts them there, nobody sends them anywhere.

Each is a file of one folder, called as the plan calls it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from farshore.errors import NotFound, Permanent

#: Keys and passwords are smaller.
LARGEST_SECRET_BYTES: Final = 64 * 1024


class Secrets:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """Return the names of the secrets that can be read, sorted."""
        try:
            found = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        except OSError:
            return ()
        return tuple(name for name in found if self._is_readable(name))

    def _is_readable(self, name: str) -> bool:
        try:
            self.read(name)
        except (NotFound, Permanent):
            return False
        return True

    def read(self, name: str) -> str:
        """Return the secret called ``name`` (a :data:`farshore.model.base.Name`), without line breaks at its end.

        Raises:
            NotFound: the node has none of that name.
            Permanent: others than its owner may read it, or it is no text of a sensible size.
        """
        path = self.folder / name
        if name != path.name or name.startswith("."):
            raise NotFound(f"{name!r} is no name of a secret", code="secret-unknown")
        try:
            with path.open("rb") as source:
                mode = os.fstat(source.fileno()).st_mode
                content = source.read(LARGEST_SECRET_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(
                f"this node has no secret {name!r}",
                code="secret-unknown",
                hint=f"Put it into {self.folder} as a file of that name, mode 0600.",
                secret=name,
            ) from None
        except OSError as error:
            raise Permanent(
                f"secret {name!r} cannot be read: {error.strerror}", code="secret-unreadable", secret=name
            ) from error
        if stat.S_IMODE(mode) & 0o077:
            raise Permanent(
                f"secret {name!r} may be read by others: mode {stat.S_IMODE(mode):04o}",
                code="secret-exposed",
                hint=f"chmod 600 {path}",
                secret=name,
            )
        if len(content) > LARGEST_SECRET_BYTES:
            raise Permanent(
                f"secret {name!r} has more than {LARGEST_SECRET_BYTES} bytes", code="secret-unreadable", secret=name
            )
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Permanent(f"secret {name!r} is no UTF-8 text", code="secret-unreadable", secret=name) from error
        return text.rstrip("\r\n")
