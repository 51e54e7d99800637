"""Snapshots of volumes that become points: taken by EC2 at one instant, found again by their tags.

``CreateSnapshot`` takes no client token. So a snapshot carries the name of the attempt (``farshore:seal``), is looked
for before it is taken, and has the role of a point only once it is whole and the one that counts; what was taken twice
goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from farshore.errors import NotFound, Retry
from farshore.platforms.aws import tags
from farshore.platforms.aws.account import Account, patiently
from farshore.platforms.aws.ebs import Ebs, SnapshotState

_CAPTURE: Final = "capture"


class Captures:
    """Takes them, for one site."""

    def __init__(self, account: Account, ebs: Ebs, site: str) -> None:
        self._account = account
        self._ebs = ebs
        self._site = site

    def take(self, volume_id: str, key: str, attempt: str, named: Mapping[str, str]) -> str:
        """Return the snapshot of a volume, completed, as the point of the draft ``key``; ``named``: the draft's tags.

        The same ``attempt`` finds the same one.

        Raises:
            NotFound: there is no such volume.
            Retry: EC2 could not take it, or it is not completed yet.
        """
        chosen = patiently(lambda: self._taken(volume_id, key, attempt, named))
        state = self._ebs.wait_completed([chosen]).get(chosen)
        if state is None or state.state != "completed":
            self._ebs.delete(chosen)
            raise Retry(
                f"the snapshot of volume {volume_id} failed: {state.message if state is not None else 'it is gone'}",
                code="capture-failed",
                hint="Look at the volume's key and state in EC2; the next attempt takes another snapshot.",
                volume_id=volume_id,
            )
        self._ebs.tag(chosen, {tags.ROLE: tags.DRAFT_ROLE})
        self.remove(key)
        return chosen

    def find(self, key: str, attempt: str) -> SnapshotState | None:
        """Return the snapshot that an attempt has taken, if it did: the one that is a point, or the first."""
        found = [one for one in self._of(key) if one.tags.get(tags.SEAL) == attempt and one.state != "error"]
        return min(
            found, key=lambda one: (one.tags.get(tags.ROLE) == _CAPTURE, one.started_at, one.snapshot_id), default=None
        )

    def remove(self, key: str) -> None:
        """Remove what was taken for a draft and did not become its point."""
        for one in self._of(key):
            if one.tags.get(tags.ROLE) == _CAPTURE:
                self._ebs.delete(one.snapshot_id)

    def _taken(self, volume_id: str, key: str, attempt: str, named: Mapping[str, str]) -> str:
        found = self.find(key, attempt)
        if found is not None:
            return found.snapshot_id
        all_tags = {**named, tags.ROLE: _CAPTURE, tags.SEAL: attempt}
        try:
            reply = self._account.call(
                "ec2",
                "create_snapshot",
                VolumeId=volume_id,
                Description="Farshore",
                TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags.tag_list(all_tags)}],
            )
        except NotFound as error:
            raise NotFound(f"volume {volume_id} is gone", code="volume-not-found", volume_id=volume_id) from error
        return str(reply["SnapshotId"])

    def _of(self, key: str) -> list[SnapshotState]:
        return list(self._ebs.find(tags.filters(SITE=self._site, DRAFT=key)))
