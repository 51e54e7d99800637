"""Say which collections are missing: requirements.py NAME>=VERSION... -- FOLDER...; prints a JSON list of them.

A collection is looked for where ansible-core would: in its configured folders, then beside the Python packages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def version_of(name: str, folders: list[str]) -> tuple[int, ...] | None:
    """Return the version of the collection that would be used, None if there is none."""
    for folder in folders:
        manifest = Path(folder, "ansible_collections", *name.split("."), "MANIFEST.json")
        if manifest.is_file():
            version = json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]
            return tuple(int(part) for part in version.split("-")[0].split("."))
    return None


def main() -> None:
    """Print what is missing, or too old."""
    at = sys.argv.index("--")
    folders = [folder.rstrip("/").removesuffix("/ansible_collections") for folder in sys.argv[at + 1 :]] + sys.path
    missing = []
    for wanted in sys.argv[1:at]:
        name, least = wanted.split(">=")
        found = version_of(name, folders)
        if found is None or found < tuple(int(part) for part in least.split(".")):
            missing.append(wanted)
    print(json.dumps(missing))


if __name__ == "__main__":
    main()
