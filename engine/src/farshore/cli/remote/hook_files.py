"""The files of a plan's hooks, as they are sent with it: whole folders from beside the plan's file."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from farshore.errors import Invalid

if TYPE_CHECKING:
    from farshore.cli.remote.client import Client

_LEFT_OUT: Final = ("~", ".pyc", ".retry", ".swp", ".orig")
#: The control plane refuses more, and says it better; this only keeps a wrong folder from being read for minutes.
_MOST_BYTES: Final = 16 * 1024 * 1024


def body(client: Client, name: str, text: str, file: Path) -> dict[str, Any]:
    """Return what carries the plan in ``text``, and the files that the control plane finds named in it."""
    from farshore.cli.remote.client import segment

    found: dict[str, Any] = {"source": text}
    if re.search(r"\b(hooks|ansible)\b", text):
        named = client.post(f"/plans/{segment(name)}:preview", found).body.get("files") or []
        files = collect(file.parent, named)
        if files:
            found["files"] = files
    return found


def collect(root: Path, named: list[str]) -> dict[str, str]:
    """Return content as base64 by path: of each file in ``named`` the folder just below ``root`` that it is in.

    Raises:
        Invalid: a link is among it, or a file cannot be read.
    """
    found: dict[str, str] = {}
    for name in named:
        top = name.partition("/")[0]
        paths = [root / name] if top == name else _below(root / top)
        for path in paths:
            key = path.relative_to(root).as_posix()
            if key in found or not (path.exists() or path.is_symlink()):
                continue  # where a file is missing the control plane says where the plan names it
            if path.is_symlink():
                raise _refused(f"{path} is a link", "Files of hooks are sent as they are; put them there.")
            try:
                found[key] = base64.b64encode(path.read_bytes()).decode()
            except OSError as error:
                raise _refused(f"{path} cannot be read: {error.strerror}", "") from error
            if sum(map(len, found.values())) > _MOST_BYTES:
                raise _refused(f"{root / top} holds too much to be sent with a plan", "Keep large things elsewhere.")
    return found


def _below(folder: Path) -> list[Path]:
    if folder.is_symlink():
        return [folder]
    found = []
    for below, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one != "__pycache__")
        names = [*(one for one in files if not one.startswith(".") and not one.endswith(_LEFT_OUT))]
        names += [one for one in folders if (Path(below) / one).is_symlink()]
        found += [Path(below) / one for one in sorted(names)]
    return found


def _refused(message: str, hint: str) -> Invalid:
    return Invalid(message, code="hook-files-invalid", field="files", hint=hint)
