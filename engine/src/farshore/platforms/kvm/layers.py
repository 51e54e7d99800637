"""The layers of replicated disks in a pool: names, sidecars, leases and the relation of backing.

    <pool>/<machine>/<disk>/<stem>.draft.qcow2   written by one storage daemon
    <pool>/<machine>/<disk>/<stem>.qcow2         sealed, never changes as seen
    <pool>/<machine>/<disk>/<stem>.json          its disk, draft key and whether it is on its way out; there before the
                                                 image, gone after it
    <pool>/leases/*.json                         one file for each (tag, point)
    <pool>/recovered/<tag>/*.qcow2               disks of recovered machines, layers over points

A point's id is ``<machine>/<disk>/<stem>``. Which layer stands on which is read from the images' own headers: there is
no second record of it that could differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Invalid, NotFound
from farshore.platforms.kvm import images

#: The longest chain that we want: each layer costs a lookup for every cluster that a guest reads.
MAX_CHAIN: Final = 32
RESERVED: Final = frozenset({"leases", "manifests", "recovered", "seeds"})
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, slots=True)
class LayerFile:
    """The place of one layer, sealed or draft."""

    folder: Path
    point: str
    stem: str

    @property
    def sealed(self) -> Path:
        """The image once it is sealed."""
        return self.folder / f"{self.stem}.qcow2"

    @property
    def draft(self) -> Path:
        """The image while it is written."""
        return self.folder / f"{self.stem}.draft.qcow2"

    @property
    def creating(self) -> Path:
        """What :func:`farshore.platforms.kvm.images.create` leaves when it is cut short."""
        return self.folder / f"{self.draft.name}.creating"

    @property
    def sidecar(self) -> Path:
        """Its record."""
        return self.folder / f"{self.stem}.json"

    def record(self) -> dict[str, Any]:
        """Return the sidecar's content."""
        value: dict[str, Any] = json.loads(self.sidecar.read_bytes())
        return value

    def mark_dropping(self) -> None:
        """Note, durable on return, that the layer is on its way out and shows nothing that can be relied on."""
        durable.write_json(self.sidecar, {**self.record(), "dropping": True})

    def is_whole(self) -> bool:
        """Whether the layer is a point: sealed, and not on its way out."""
        try:
            return self.sealed.is_file() and not self.record().get("dropping")
        except FileNotFoundError:
            return False  # removed while we looked


class Layers:
    """All layers of one pool."""

    def __init__(self, pool: Path) -> None:
        # Backing images are compared by path.
        self.pool = pool = pool.resolve()
        self.leases = pool / "leases"
        self.recovered = pool / "recovered"
        for folder in (pool, self.leases, self.recovered):
            # Others may pass through to a file that they were given, but not look around.
            durable.make_dir(folder, 0o711)

    def of_key(self, disk_key: str, key: str) -> LayerFile:
        """Return where the draft ``key`` of a disk is, or would be."""
        machine, _, disk = disk_key.partition("/")
        for part in (machine, disk):
            if not _PART.fullmatch(part) or part in RESERVED:
                raise Invalid(f"{disk_key!r} is no disk key", field="disk_key", hint="Write it as <machine>/<disk>.")
        stem = _stem(key)
        return LayerFile(self.pool / machine / disk, f"{disk_key}/{stem}", stem)

    def of_point(self, point: str) -> LayerFile:
        """Return where the point is, or would be.

        Raises:
            NotFound: the text cannot be a point of this pool.
        """
        parts = point.split("/")
        if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts) or parts[0] in RESERVED:
            raise NotFound(f"{point!r} is no point of this pool", point=point)
        machine, disk, stem = parts
        return LayerFile(self.pool / machine / disk, point, stem)

    def existing(self, point: str) -> LayerFile:
        """Return the point's place; NotFound if there is no such point."""
        layer = self.of_point(point)
        if not layer.is_whole():
            raise NotFound(f"point {point} does not exist in pool {self.pool}", point=point)
        return layer

    def all(self) -> Iterator[LayerFile]:
        """Yield every layer that has an image or a sidecar, by machine and disk."""
        for folder in sorted(self.pool.glob("*/*/")):
            machine = folder.parent.name
            if machine in RESERVED:
                continue
            try:
                stems = sorted({path.name.split(".")[0] for path in folder.iterdir()})
            except FileNotFoundError:
                continue  # removed while we looked
            for stem in stems:
                yield LayerFile(folder, f"{machine}/{folder.name}/{stem}", stem)

    def drafts_of(self, key: str) -> list[LayerFile]:
        """Return the drafts called ``key``, of whatever disk."""
        stem = _stem(key)
        return [layer for layer in self.all() if layer.stem == stem and not layer.sealed.is_file()]

    def children(self, layer: LayerFile) -> tuple[list[tuple[LayerFile, Path]], list[Path]]:
        """Return (layers with their image, disks of recovered machines) that stand directly on a sealed layer."""
        stand_on: dict[LayerFile, Path] = {}
        for other in self.all():
            # The draft first: one that is sealed while we look is found under its other name.
            for path in (other.draft, other.sealed):
                if _stands_on(path, layer):
                    stand_on[other] = path
        used = [path for path in self.recovered.glob("*/*.qcow2") if _stands_on(path, layer)]
        return list(stand_on.items()), used

    def chain_length(self, path: Path) -> int:
        """Return how many images a read of ``path`` may pass through, itself counted."""
        length = 0
        at: Path | None = path
        while at:
            length += 1
            at = images.header(at).backing
        return length

    # --- leases --------------------------------------------------------------------------------------------------

    def lease(self, point: str, tag: str) -> None:
        """Pin a point for ``tag``, durable on return."""
        name = f"{_stem(tag)}-{_stem(point)}.json"
        durable.create(self.leases / name, json.dumps({"tag": tag, "point": point}).encode())

    def release(self, tag: str) -> None:
        """Drop all leases of ``tag``."""
        for path in self.leases.glob(f"{_stem(tag)}-*.json"):
            durable.remove(path)

    def holders(self, point: str) -> list[str]:
        """Return the tags that pin a point."""
        tags = []
        for path in self.leases.glob(f"*-{_stem(point)}.json"):
            with contextlib.suppress(FileNotFoundError):
                tags.append(str(json.loads(path.read_bytes())["tag"]))
        return sorted(tags)


def _stands_on(path: Path, layer: LayerFile) -> bool:
    try:
        return path.is_file() and images.header(path).backing == layer.sealed
    except NotFound:
        return False  # renamed or removed while we looked


def _stem(text: str) -> str:
    """Return a file name for any text; 96 bits, so that two texts never share one."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
