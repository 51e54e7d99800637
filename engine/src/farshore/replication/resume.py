"""What follows a crash: which drafts go on, which are removed.

    journal_dir/<checkpoint id>/.lock            held while a process works on the checkpoint
    journal_dir/<checkpoint id>/term             the highest term in which this node worked on it, above 1
    journal_dir/<checkpoint id>/<disk>/journal   see farshore.journal
    journal_dir/<checkpoint id>/<disk>/leaves

A journal is made durable before its draft is made, so every draft of ours has one; and it is removed after the manifest
is published or the draft is gone. A draft is continued only by who finds its journal and gets the lock: the node whose
process wrote it, after that process has ended. A later checkpoint of the group takes an earlier one's journals into its
own folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.checkpoints import terms
from farshore.checkpoints.manifest import GROUPS, decode, is_refusal, load_group, parse_key
from farshore.checkpoints.publish import confirm, finish_withdrawals
from farshore.errors import Conflict, FarshoreError, NoSpace, NotFound
from farshore.journal.state import Known, Subject, doubt, read_subject
from farshore.model.checkpoint import Manifest
from farshore.model.task import ReplicateDisk
from farshore.platforms.contract import ManifestStore, Target
from farshore.replication import seeding

log = logging.getLogger(__name__)

#: The highest term in which this node worked on a checkpoint; 1 where there is no such file.
_TERM: Final = "term"
_LOCK: Final = ".lock"
#: So often a folder may be removed under one who wants to hold it, before it counts as another's.
_HOLD_TRIES: Final = 10


def disk_folder(disk_key: str) -> str:
    """Return the name of a disk's folder: its key may hold any character."""
    return sha256(disk_key.encode()).hexdigest()[:16]


def draft_key(checkpoint_id: str, disk_key: str, term: int) -> str:
    """Return the name of the draft that ``term`` would begin for a disk."""
    return f"{checkpoint_id}.{disk_folder(disk_key)}.t{term}"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a checkpoint's journals.

    Raises:
        Conflict: another process, or another thread of this one, works on them.
    """
    busy = Conflict(
        f"checkpoint {folder.name} is being worked on by another process",
        code="draft-busy",
        hint="Wait until it has ended.",
        checkpoint=folder.name,
    )
    for _ in range(_HOLD_TRIES):
        durable.make_dir(folder)
        try:
            fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # whoever held it has removed the folder just now
            continue
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            if not _names(folder / _LOCK, fd):  # the same, and another may hold the next folder of this name
                continue
            yield
            return
        finally:
            os.close(fd)
    raise busy


def _names(path: Path, fd: int) -> bool:
    """Say whether ``path`` is still the name of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def forget(folder: Path) -> None:
    """Remove a checkpoint's journals, or one disk's; its drafts are points or gone."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name != _LOCK:  # that goes last: from then on another may begin anew
                _remove(path)
    shutil.rmtree(folder, ignore_errors=True)
    durable.fsync_dir(folder.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(target: Target, folder: Path) -> None:
    """Remove the drafts, and the points that were sealed but never published, then the journals of a checkpoint."""
    for path in _disks(folder):
        _discard_disk(target, path)
    forget(folder)


def leave(target: Target, folder: Path, manifest: Manifest) -> None:
    """Remove the journals of a published checkpoint. Another node may have published it: then our drafts go too."""
    for path in _disks(folder):
        _discard_disk(target, path, {disk.point for disk in manifest.disks})
    forget(folder)


def _discard_disk(target: Target, path: Path, named: Collection[str] = ()) -> None:
    """Remove a disk's draft or point, if that is not ``named``. Its journal is the caller's to remove, afterwards."""
    known = read_subject(path)
    if known is None:
        return
    target.abandon(known.draft_key)
    if known.sealed is None and known.copied:
        _drop_unrecorded(target, known, named)
    elif known.sealed is not None and known.sealed.point not in named:
        target.drop(known.sealed.point)


def _drop_unrecorded(target: Target, known: Known, named: Collection[str] = ()) -> None:
    """Drop the point of a draft that was sealed just before its process died, if it was and nobody has named it."""
    subject, name = known.subject, f"draft:{known.draft_key}"
    try:
        draft = target.open(subject.disk_key, subject.size_bytes, subject.base_point, known.draft_key)
    except (NotFound, NoSpace, Conflict):
        return  # it would have to be made anew, so there is none
    try:
        if name not in target.points() and draft.seal() not in named:
            target.drop(draft.seal())
    finally:
        draft.close()
        target.abandon(known.draft_key)


def begin_term(manifests: ManifestStore, folder: Path, head: Manifest) -> None:
    """Note, here and in the store, that this node works on the checkpoint in ``folder`` in ``head``'s term.

    Raises:
        Fenced: somebody does in a higher one.
    """
    terms.check(manifests, head)
    if terms.newest(manifests, head.group_id, head.checkpoint_id)[0] > _our_term(folder):
        for path in _disks(folder):
            doubt(path)  # another node may have gone on in our draft, and died
    if head.term > 1:
        durable.write(folder / _TERM, str(head.term).encode())
    terms.begin(manifests, head)


def _our_term(folder: Path) -> int:
    try:
        return int((folder / _TERM).read_bytes())
    except FileNotFoundError:
        return 1


def _is_passed(manifests: ManifestStore, folder: Path, group_id: str) -> bool:
    """Say whether another node has taken the checkpoint over since we worked on it, and may still work on it."""
    term, ordered_at = terms.newest(manifests, group_id, folder.name)
    return term > _our_term(folder) and all(one.ordered_at <= ordered_at for one in load_group(manifests, group_id))


def take_up(
    target: Target, manifests: ManifestStore, journal_dir: Path, folder: Path, subjects: Iterable[Subject]
) -> None:
    """Settle what the group left unfinished: what the checkpoint in ``folder`` can go on with goes on there.

    A draft of an earlier checkpoint, whose source point is gone or was given up, is as good as one of this checkpoint
    while it stands on the same base; see docs/internals/journal.md. The rest is removed: the control plane has ordered
    another one.
    """
    wanted = {disk_folder(subject.disk_key): subject for subject in subjects}
    groups = {subject.group_id for subject in wanted.values()}
    for path in _disks(folder):
        if not _goes_on(target, path, wanted.get(path.name)):
            _discard_disk(target, path)
            forget(path)
    others = [other for other in _folders(journal_dir) if other != folder and _group_of(other) in groups]
    for other in sorted(others, key=lambda one: one.stat().st_mtime, reverse=True):
        with contextlib.suppress(Conflict), held(other):
            if any(_is_passed(manifests, other, group_id) for group_id in groups):
                continue
            for path in _disks(other):
                place = folder / path.name
                if not place.exists() and _goes_on(target, path, wanted.get(path.name)):
                    log.info("the draft of %s goes on as one of %s", other.name, folder.name)
                    path.rename(place)
                    durable.fsync_dir(folder)
                    durable.fsync_dir(other)
        _retire(target, manifests, other)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """How a disk's draft begins on this node.

    Attributes:
        draft_key: the draft's name.
        taken: what another node said is durable in it; has to be proven.
        lost_bytes: what another node had made durable and is of no use.
        reason: why not.
    """

    draft_key: str
    taken: tuple[tuple[int, int], ...] = ()
    lost_bytes: int = 0
    reason: str = ""


def inherit(target: Target, disk: ReplicateDisk, subject: Subject, own_key: str) -> Inheritance:
    """Say whether this node goes on in the draft that another one began for the same checkpoint.

    It may where the platform keeps the other one from writing to it ever after. To have it open is what excludes
    everybody else: so it is tried here, and a draft that the other one still holds is left to it.
    """
    if disk.draft_key is None or disk.draft_key == own_key or not disk.durable:
        return Inheritance(own_key)
    why = ""
    if target.caps.fences_by == "none" or not target.caps.reads_unsealed:
        why = "this platform cannot keep another node from writing to its draft"
    elif f"draft:{disk.draft_key}" not in target.points():
        why = "its draft is not within reach"
    else:
        try:
            target.open(disk.disk_key, disk.size_bytes, subject.base_point, disk.draft_key).close()
        except FarshoreError as error:
            why = f"its draft cannot be had: {error.message}"
    if not why:
        log.info("going on in draft %s, which another node began", disk.draft_key)
        return Inheritance(disk.draft_key, disk.durable)
    lost = sum(stop - start for start, stop in disk.durable)
    log.warning("draft %s of another node is given up with %d bytes: %s", disk.draft_key, lost, why)
    return Inheritance(own_key, (), lost, f"what another node had copied is copied again: {why}")


def _goes_on(target: Target, path: Path, subject: Subject | None) -> bool:
    """Say whether the draft that the journal in ``path`` speaks of can become one of ``subject``."""
    known = read_subject(path)
    if known is None or known.subject == subject:
        return known is not None
    return (
        subject is not None
        and known.subject.passes_to(subject)
        and known.exact
        and known.sealed is None
        and f"draft:{known.draft_key}" in target.points()  # else it is sealed, or gone
    )


def sweep(target: Target, manifests: ManifestStore, journal_dir: Path, keep: Collection[str]) -> list[str]:
    """Remove what no task needs any more; return the checkpoints, or drafts, that were removed.

    Args:
        target: where drafts and points lie.
        manifests: what is published is never touched.
        journal_dir: the journals of this node.
        keep: checkpoint ids of tasks that run or will be given to this node again.
    """
    removed = [
        folder.name
        for folder in _folders(journal_dir)
        if folder.name not in keep and _retire(target, manifests, folder)
    ]
    removed.extend(finish_withdrawals(manifests, target))
    removed.extend(seeding.let_go(target, manifests, keep=keep))
    return removed


def _retire(target: Target, manifests: ManifestStore, folder: Path) -> bool:
    try:
        with held(folder):
            group_id = _group_of(folder)
            manifest = published(manifests, group_id, folder.name) if group_id is not None else None
            if manifest is not None:
                leave(target, folder, confirm(manifests, manifest))
            elif group_id is not None and _is_passed(manifests, folder, group_id):
                return False  # the drafts may be another node's by now
            else:
                log.info("removing what is left of checkpoint %s", folder.name)
                discard(target, folder)
    except Conflict:
        return False  # somebody works on it, or a point is leased; the next sweep looks again
    return True


def published(manifests: ManifestStore, group_id: str, checkpoint_id: str) -> Manifest | None:
    """Return a group's checkpoint if it is published; a refused one never will be."""
    for key in manifests.list(f"{GROUPS}{group_id}/"):
        parsed = parse_key(key)
        if parsed is None or parsed[2] != checkpoint_id:
            continue
        with contextlib.suppress(NotFound):  # withdrawn between the two calls
            data = manifests.get(key)
            if not is_refusal(data):
                return decode(data, key)
    return None


def _folders(journal_dir: Path) -> list[Path]:
    if not journal_dir.is_dir():
        return []
    return sorted(path for path in journal_dir.iterdir() if path.is_dir() and not path.name.startswith("."))


def _disks(folder: Path) -> list[Path]:
    """Return the folders of a checkpoint's disks."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _group_of(folder: Path) -> str | None:
    for path in _disks(folder):
        known = read_subject(path)
        if known is not None:
            return known.subject.group_id
    return None
