"""What a leaf file holds, leaf by leaf."""

from __future__ import annotations

from farshore.blocks.digest import DIGEST_SIZE
from farshore.journal.leaves import Leaves


def by_leaf(leaves: Leaves) -> dict[int, bytes]:
    """Return the digest of each leaf that has one."""
    return {
        first + at // DIGEST_SIZE: digests[at : at + DIGEST_SIZE]
        for first, digests in leaves.runs()
        for at in range(0, len(digests), DIGEST_SIZE)
    }
