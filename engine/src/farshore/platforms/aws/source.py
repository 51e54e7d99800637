"""The source half: a point is a set of EBS snapshots, taken of all volumes of an instance at one instant.

What a point is lies in the bucket beside the manifests, so that every node of the site can read it:

    PREFIX/source/<point>.json    the snapshot per disk, the base's, what the machines were; the point's commit point

The snapshots carry the point's name too, so that those of a point whose record was never written are found.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from farshore.errors import Conflict, FarshoreError, Invalid, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.model.machine import MachineFacts, disk_key
from farshore.model.plan import Consistency, Quiesce
from farshore.platforms.aws import tags
from farshore.platforms.aws.account import Account, patiently
from farshore.platforms.aws.ebs import BLOCK, Ebs, Row, SnapshotState
from farshore.platforms.aws.reading import SnapshotReader, Tokens
from farshore.platforms.contract import Caps, Extent, Kind, Snapshot, SnapshotDisk

log = logging.getLogger(__name__)

_SOURCE: Final = "source"
_BASE: Final = "base"
_POINT: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$")
#: In a point's evidence: the snapshot and the base's snapshot by disk.
_EBS: Final = "ebs"
#: The fewest rows that a listing may be asked for: enough to see whether it can be had.
_PROBE: Final = 100


class AwsSource:
    """Reads instances by their volumes' snapshots. ``facts`` returns a machine by its id."""

    caps = Caps(granularity_bytes=BLOCK, max_parallel=32, levels=("machine",))

    def __init__(self, account: Account, facts: Callable[[str], MachineFacts], ebs: Ebs | None = None) -> None:
        settings = account.settings
        self._account = account
        self._facts = facts
        self._ebs = ebs or Ebs(account)
        self._site = tags.site_of(settings.bucket, settings.prefix)
        self._records = _Records(account)
        self._tokens: dict[str, Tokens] = {}

    # Points ---------------------------------------------------------------------------------------------------------

    def snapshot(
        self,
        group_id: str,
        point_id: str,
        machine_ids: Sequence[str],
        bases: Mapping[str, str | None],
        consistency: Consistency,
        quiesce: Mapping[str, Quiesce] | None = None,  # noqa: ARG002  nobody is in there
    ) -> Snapshot:
        """Take one point; see the contract. It returns once all snapshots can be read."""
        existing = self.find(point_id)
        if existing is not None:
            return existing
        machines = [self._facts(machine_id) for machine_id in machine_ids]
        self._remove_left_overs(group_id, point_id, {base for base in bases.values() if base})
        taken_at = time.time()
        began = time.monotonic()
        taken: dict[str, str] = {}
        for machine in machines:
            taken |= self._take(machine, group_id, point_id)
        skew_s = time.monotonic() - began
        states = self._ebs.wait_completed(sorted(taken.values()))
        self._refuse_broken(point_id, taken, states)
        disks, parents = self._compare(machines, taken, bases)
        snapshot = Snapshot(
            point_id=point_id,
            group_id=group_id,
            taken_at=min([taken_at, *(state.started_at for state in states.values() if state.started_at > 0)]),
            level="machine",
            machines=tuple(machines),
            disks=tuple(disks),
            evidence=_evidence(consistency, machines, skew_s)
            | {_EBS: {key: {"snapshot": one, "base": parents.get(key)} for key, one in taken.items()}},
        )
        self._records.put(snapshot, _SOURCE)
        return snapshot

    def _take(self, machine: MachineFacts, group_id: str, point_id: str) -> dict[str, str]:
        """Take the snapshots of one machine, all at one instant; those of an earlier call are found."""
        disks = {disk.path: disk_key(machine.machine_id, disk.disk_id) for disk in machine.disks}
        if not disks:
            raise Permanent(
                f"machine {machine.name} has no volume that could be protected",
                code="no-volumes",
                hint="Disks in the instance store have no snapshots; move what matters to EBS volumes.",
            )
        own = tags.filters(SITE=self._site, POINT=point_id, MACHINE=machine.machine_id)
        found = {one.volume_id: one.snapshot_id for one in self._ebs.find(own) if one.state != "error"}
        if set(found) != set(disks):  # all of an instance's volumes are taken by one call, or none
            for left in found.values():
                self._ebs.delete(left)
            named = {
                tags.SITE: self._site,
                tags.ROLE: _SOURCE,
                tags.POINT: point_id,
                tags.GROUP: group_id,
                tags.MACHINE: machine.machine_id,
                tags.NAME: f"farshore {machine.name}",
            }
            reply = self._account.patiently(
                "ec2",
                "create_snapshots",
                InstanceSpecification={"InstanceId": machine.machine_id},
                Description="Farshore",
                TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags.tag_list(named)}],
            )
            found = {one["VolumeId"]: one["SnapshotId"] for one in reply["Snapshots"]}
        missing = sorted(set(disks) - set(found))
        if missing:
            raise Retry(f"volumes of {machine.name} were changed meanwhile: {missing}", code="volumes-changed")
        return {key: found[volume] for volume, key in disks.items()}

    def _refuse_broken(self, point_id: str, taken: Mapping[str, str], states: Mapping[str, SnapshotState]) -> None:
        """Remove a point of which a snapshot is not whole.

        Raises:
            Retry: that is so; the next attempt takes another.
        """
        broken = {
            key: f"{state.state} {state.message}".strip() if (state := states.get(one)) is not None else "gone"
            for key, one in taken.items()
            if (state := states.get(one)) is None or state.state != "completed"
        }
        if not broken:
            return
        for one in taken.values():
            self._ebs.delete(one)
        raise Retry(
            f"point {point_id} could not be taken: "
            + ", ".join(f"the snapshot of {key} is {why}" for key, why in sorted(broken.items())),
            code="source-snapshot-failed",
            hint="Look at the volume's key and state in EC2; the next attempt takes new snapshots.",
            point=point_id,
            disks=broken,
        )

    def _compare(
        self, machines: Sequence[MachineFacts], taken: Mapping[str, str], bases: Mapping[str, str | None]
    ) -> tuple[list[SnapshotDisk], dict[str, str]]:
        """Find out of which disks the changes can be listed; return these with the bases' snapshots."""
        records: dict[str, dict[str, Any]] = {}
        disks: list[SnapshotDisk] = []
        parents: dict[str, str] = {}
        for machine in machines:
            for disk in machine.disks:
                key = disk_key(machine.machine_id, disk.disk_id)
                base = bases.get(key)
                if base is None:
                    reason = "the target holds nothing yet"
                else:
                    if base not in records:
                        records[base] = _ebs_of(self._records.get(base))
                    older = records[base].get(key, {}).get("snapshot")
                    reason = self._why_not(older, taken[key], base)
                    if older and not reason:
                        parents[key] = older
                disks.append(SnapshotDisk(key, disk.size_bytes, incremental=not reason, reason=reason))
        return disks, parents

    def _why_not(self, older: str | None, newer: str, base: str) -> str:
        """Say why the changes since a base cannot be listed; empty if they can."""
        if older is None:
            return f"no snapshot of {base} is known"
        try:
            next(self._ebs.changed(older, newer, page=_PROBE))
        except NotFound:
            return f"the snapshot {older} of {base} is gone"
        except FarshoreError as error:
            if error.evidence.get("aws_code") != "ValidationException":
                raise
            return f"{older} of {base} and {newer} are of unrelated volumes"
        return ""

    def find(self, point_id: str) -> Snapshot | None:
        """Return the point if all of its snapshots are there."""
        record = self._records.get(point_id)
        if record is None or record["role"] != _SOURCE:
            return None
        wanted = [one["snapshot"] for one in _ebs_of(record).values()]
        found = self._ebs.describe(wanted)
        if any(one not in found or found[one].state != "completed" for one in wanted):
            return None
        return Snapshot.from_json(record["point"])

    # Reading --------------------------------------------------------------------------------------------------------

    def changed(self, snapshot: Snapshot, disk_key: str, base: str | None) -> Iterator[Extent]:
        """Yield what changed since ``base``, or all that is allocated, page by page; see the contract."""
        place = snapshot.evidence[_EBS][disk_key]
        newer, size = place["snapshot"], snapshot.disk(disk_key).size_bytes
        tokens = self._tokens_of(newer)
        if base is not None and place["base"] is None:
            raise _base_unknown(snapshot.point_id, base)
        pages = self._ebs.blocks(newer) if base is None else self._ebs.changed(place["base"], newer)
        first = 0
        try:
            for rows, following in pages:
                if rows:
                    tokens.add(first, rows, following, whole=base is None)
                    first = rows[-1][0] + 1
                yield from _runs(rows, size)  # page by page: what is listed is read while the next one comes
        except NotFound as error:
            raise self._lost(snapshot, newer, base) from error
        except FarshoreError as error:
            if base is not None and error.evidence.get("aws_code") == "ValidationException":
                raise _base_unknown(snapshot.point_id, base) from error
            raise

    def _lost(self, snapshot: Snapshot, newer: str, base: str | None) -> RestartFromCheckpoint:
        if base is not None and self._ebs.state(newer) is not None:
            return _base_unknown(snapshot.point_id, base)
        return _gone(snapshot.point_id)

    def reader(self, snapshot: Snapshot, disk_key: str) -> SnapshotReader:
        """Return a reader of one disk of the point."""
        newer = snapshot.evidence[_EBS][disk_key]["snapshot"]
        state = self._ebs.state(newer)
        if state is None or state.state != "completed":
            raise _gone(snapshot.point_id)
        size = snapshot.disk(disk_key).size_bytes
        return SnapshotReader(self._ebs, newer, self._tokens_of(newer), lambda: _gone(snapshot.point_id), size)

    def _tokens_of(self, snapshot_id: str) -> Tokens:
        return self._tokens.setdefault(snapshot_id, Tokens(self._ebs, snapshot_id))

    # The end of a point ---------------------------------------------------------------------------------------------

    def release(self, group_id: str, point_id: str, machine_ids: Sequence[str], *, applied: bool) -> None:  # noqa: ARG002
        """End the reading of a point. What was applied stays, as what the next changes are listed since."""
        log.info("point %s of group %s was %s", point_id, group_id, "applied" if applied else "given up")
        if not applied:
            self._discard(point_id)
            return
        record = self._records.get(point_id)
        if record is None:
            return  # the older bases are not worth less for it
        self._make_base(point_id, record)
        for other in self._points_of(tags.filters(SITE=self._site, GROUP=group_id, ROLE=_BASE)):
            if other != point_id:
                self._discard(other)

    def untrack(self, machine_id: str) -> None:
        """Remove every trace of ours from the machine: its snapshots, and what points say of them."""
        for point_id in self._points_of(tags.filters(SITE=self._site, MACHINE=machine_id)):
            record = self._records.get(point_id)
            if record is not None:
                left = {key: one for key, one in _ebs_of(record).items() if not key.startswith(f"{machine_id}/")}
                if left and record["role"] == _BASE:
                    record["point"]["evidence"][_EBS] = left
                    self._records.write(point_id, record)
                else:
                    self._records.remove(point_id)
        self._delete(tags.filters(SITE=self._site, MACHINE=machine_id))

    def traces(self, machine_id: str) -> list[str]:
        """Name the snapshots that are of a machine."""
        return sorted(
            f"snapshot {one.snapshot_id} of point {one.tags.get(tags.POINT, '?')}"
            for one in self._ebs.find(tags.filters(SITE=self._site, MACHINE=machine_id))
        )

    def sweep(self, keep: Sequence[str]) -> list[str]:
        """Remove points that are not in ``keep``; bases stay."""
        removed = []
        for point_id in self._points_of(tags.filters(SITE=self._site, ROLE=_SOURCE)):
            record = self._records.get(point_id)
            if record is not None and record["role"] == _BASE:
                self._make_base(point_id, record)  # not all of its tags were written
            elif point_id not in keep:
                self._discard(point_id)
                removed.append(point_id)
        return removed

    def _remove_left_overs(self, group_id: str, point_id: str, bases: set[str]) -> None:
        """Remove the points that an older attempt of the group left.

        A point that is a base now was published, and only its release was lost: it is what we count from.
        """
        for other in self._points_of(tags.filters(SITE=self._site, GROUP=group_id, ROLE=_SOURCE)):
            record = self._records.get(other)
            if other in bases and record is not None:
                self._make_base(other, record)
            elif other != point_id:
                self._discard(other)

    def _make_base(self, point_id: str, record: dict[str, Any]) -> None:
        if record["role"] != _BASE:
            self._records.write(point_id, {**record, "role": _BASE})
        held = {one["snapshot"] for one in _ebs_of(record).values()}
        for one in list(self._ebs.find(tags.filters(SITE=self._site, POINT=point_id))):
            self._tokens.pop(one.snapshot_id, None)
            if one.snapshot_id not in held:
                self._ebs.delete(one.snapshot_id)  # taken twice, for the first reply was lost
            elif one.tags.get(tags.ROLE) != _BASE:
                self._ebs.tag(one.snapshot_id, {tags.ROLE: _BASE})

    def _discard(self, point_id: str) -> None:
        self._records.remove(point_id)  # first: from here on the point is not offered any more
        self._delete(tags.filters(SITE=self._site, POINT=point_id))

    def _delete(self, filters: list[dict[str, Any]]) -> None:
        for one in list(self._ebs.find(filters)):
            self._tokens.pop(one.snapshot_id, None)
            try:
                self._ebs.delete(one.snapshot_id)
            except Conflict as error:
                log.warning("snapshot %s of ours stays: %s", one.snapshot_id, error)

    def _points_of(self, filters: list[dict[str, Any]]) -> list[str]:
        return sorted({one.tags[tags.POINT] for one in self._ebs.find(filters) if tags.POINT in one.tags})


class _Records:
    """What points are, as objects of the bucket that are written whole."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._bucket = account.settings.bucket
        self._folder = f"{account.settings.prefix}/source/"

    def get(self, point_id: str) -> dict[str, Any] | None:
        """Return a point's record."""
        try:
            data = patiently(partial(self._read, self._key(point_id)))
        except NotFound as error:
            if error.field is not None:
                raise  # the bucket, not the object
            return None
        found: dict[str, Any] = json.loads(data)
        return found

    def _read(self, key: str) -> bytes:
        reply = self._account.call("s3", "get_object", Bucket=self._bucket, Key=key)
        return self._account.body(reply["Body"], "s3", "get_object")

    def put(self, snapshot: Snapshot, role: str) -> None:
        """Write what a point is."""
        self.write(snapshot.point_id, {"role": role, "point": snapshot.to_json()})

    def write(self, point_id: str, record: Mapping[str, Any]) -> None:
        """Write a record."""
        self._account.patiently(
            "s3", "put_object", Bucket=self._bucket, Key=self._key(point_id), Body=json.dumps(record).encode()
        )

    def remove(self, point_id: str) -> None:
        """Remove a record; one that is not there is no error."""
        self._account.patiently("s3", "delete_object", Bucket=self._bucket, Key=self._key(point_id))

    def _key(self, point_id: str) -> str:
        if not _POINT.match(point_id):
            raise Invalid(f"{point_id!r} is no point's id", code="point-id", field="point_id")
        return f"{self._folder}{point_id}.json"


def _runs(rows: Sequence[Row], size: int) -> Iterator[Extent]:
    """Yield the extents of a page, neighbours of one kind joined, its end cut at the disk's ``size``."""
    at = 0
    while at < len(rows):
        first, token = rows[at]
        count = 1
        while (
            at + count < len(rows)
            and rows[at + count][0] == first + count
            and ((rows[at + count][1] is None) is (token is None))
        ):
            count += 1
        at += count
        start, stop = first * BLOCK, min((first + count) * BLOCK, size)
        if start < stop:
            yield Extent(start, stop - start, Kind.ZERO if token is None else Kind.DATA)


def _ebs_of(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the snapshots that a record names, by disk."""
    found: dict[str, Any] = record["point"]["evidence"][_EBS] if record is not None else {}
    return found


def _gone(point_id: str) -> RestartFromCheckpoint:
    return RestartFromCheckpoint(
        f"the source point {point_id} is gone",
        code="source-point-gone",
        hint="The next cycle takes a new point; nothing that was published is affected.",
        point=point_id,
    )


def _base_unknown(point_id: str, base: str) -> RestartFromCheckpoint:
    return RestartFromCheckpoint(
        f"point {point_id} knows no changes since {base}", code="base-unknown", base=base, point=point_id
    )


def _evidence(consistency: Consistency, machines: Sequence[MachineFacts], skew_s: float) -> dict[str, Any]:
    evidence: dict[str, Any] = {"method": "EBS multi-volume snapshots, one set per instance"}
    if consistency == "group" and len(machines) > 1:
        evidence["below_group"] = ["EC2 takes the volumes of one instance at one instant, not those of several"]
    if len(machines) > 1:
        evidence["skew_s"] = round(skew_s, 3)
    if consistency == "application":
        evidence["below_application"] = ["nothing is run in instances"]
    return evidence
