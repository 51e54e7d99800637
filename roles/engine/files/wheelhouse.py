"""Collect the wheels of the engine and of what it needs: wheelhouse.py SOURCE CACHE [EXTRA...] [--look]

The archive is named after the engine's version and a digest of its content, of the extras and of the interpreter, so
that a change of any makes another one. Prints ``{"changed", "archive", "release"}`` as JSON; with --look it makes none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

PARTS = ("pyproject.toml", "README.md", "LICENSE", "src")
LEFT_OUT = ("__pycache__", ".egg-info")


def files(source: Path) -> list[Path]:
    """Return the files that make up the engine, in a fixed order."""
    found = [path for part in PARTS for path in [source / part, *sorted((source / part).rglob("*"))] if path.is_file()]
    return [path for path in found if not any(piece.endswith(LEFT_OUT) for piece in path.relative_to(source).parts)]


def release(source: Path, extras: list[str]) -> str:
    """Return the name of the release that ``source`` makes on this interpreter."""
    digest = hashlib.sha256(f"{sysconfig.get_platform()} {sys.version_info[:2]} {sorted(extras)}".encode())
    for path in files(source):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(source)} {len(content)}\n".encode() + content)
    version = re.search(r'^version = "(.+)"$', (source / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if version is None:
        sys.exit(f"{source}/pyproject.toml names no version")
    return f"farshore-{version.group(1)}-{digest.hexdigest()[:12]}"


def build(source: Path, archive: Path, extras: list[str]) -> None:
    """Write ``archive``; it appears whole or not at all."""
    work = archive.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    # Built from a copy: a build leaves its own files beside the source, which may be read-only.
    for path in files(source):
        target = work / "engine" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    wanted = str(work / "engine") + (f"[{','.join(sorted(extras))}]" if extras else "")
    wheels = work / "wheels"
    argv = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(wheels),
        wanted,
    ]
    subprocess.run(argv, check=True, stdout=sys.stderr)
    partial = work / archive.name
    with tarfile.open(partial, "w") as out:
        for wheel in sorted(wheels.iterdir()):
            out.add(wheel, wheel.name)
    partial.replace(archive)
    shutil.rmtree(work)


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    look = "--look" in argv
    source, cache, *extras = [word for word in argv if word != "--look"]
    folder = Path(cache)
    name = release(Path(source).resolve(), extras)
    archive = folder / f"{name}.tar"
    missing = not archive.exists()
    if missing and not look:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = not archive.exists()
            if missing:
                build(Path(source).resolve(), archive, extras)
    print(json.dumps({"changed": missing, "archive": str(archive), "release": name}))


if __name__ == "__main__":
    main(sys.argv[1:])
