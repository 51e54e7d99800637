"""``farshore up --recover-from``: where site bundles lie on this machine, and the takeover with one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from farshore.errors import Forbidden, Invalid, NotFound

if TYPE_CHECKING:
    from farshore.control.takeover import Outcome
    from farshore.model.checkpoint import Manifest

#: Where bundles are below what people name: a manifest store, a pool with one, or what holds a pool.
_BELOW: Final = ("bundles/*/*.json", "*/bundles/*/*.json", "*/*/bundles/*/*.json")
_LARGEST_FILE: Final = 512 << 20


def take_over(home: Path, source: str, key_file: Path | None, *, accept_stale: bool = False) -> Outcome:
    """Fill the empty ``home`` from the newest bundle that ``source`` (a file, a folder, ``file://``) holds.

    Raises:
        Invalid, NotFound, Conflict, Corruption: what is wrong with key, bundle or home; nothing was changed then.
    """
    from farshore.control import sealing, takeover

    if key_file is None:
        raise Invalid(
            "a site bundle is opened with the recovery key",
            code="recovery-key-missing",
            field="--recovery-key",
            hint="Name the file that `farshore up` wrote as recovery.key when the installation was made.",
        )
    key = sealing.read_key(_read(key_file, "--recovery-key"))
    where = Path(source.removeprefix("file://"))
    files = sorted({path for pattern in _BELOW for path in where.glob(pattern)}) if where.is_dir() else [where]
    found = [(str(path), _read(path, "--recover-from")) for path in files if not path.name.startswith(".")]
    taken = takeover.choose(found, key)
    manifests = _manifests(Path(taken.name)) if where.is_dir() else []
    try:
        return takeover.take_over(home, taken, manifests, accept_stale=accept_stale)
    except OSError as error:
        raise Forbidden(
            f"the home directory {home} cannot be used: {error.strerror}",
            code="home-closed",
            hint="Run as its owner, or choose another one with --home DIR.",
            path=str(home),
        ) from error


def _read(path: Path, field: str) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise Invalid(f"{path} is too large for what it should be", field=field)
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NotFound(
            f"{path} cannot be read: {error.strerror}", field=field, hint="Name a readable file or folder."
        ) from error


def _manifests(bundle: Path) -> list[Manifest]:
    """Return the manifests of the store that a bundle lies in: ``STORE/bundles/CATALOGUE/FILE``."""
    from farshore.checkpoints import catalog
    from farshore.platforms.directory import DirectoryManifests

    found, _findings = catalog.scan(DirectoryManifests(bundle.parents[2]))
    return found
