"""Which term of a checkpoint's copy is the newest: known to all who reach the store, whatever became of the others.

    terms/<group>/<checkpoint>-<term:010>.json

A task that is given to another node, or to another life of the same node, has a higher term. Who begins one above the
first says so here before it touches a draft. Who finds a higher term than its own publishes nothing and removes no
point: they may be the successor's.
"""

from __future__ import annotations

import json

from farshore.errors import Fenced
from farshore.model.checkpoint import Manifest
from farshore.platforms.contract import ManifestStore


def begin(store: ManifestStore, head: Manifest) -> None:
    """Note that ``head``'s term works on its checkpoint now; durable on return.

    Raises:
        Fenced: a higher one does.
    """
    if head.term > 1:
        body = json.dumps({"ordered_at": head.ordered_at}).encode()
        store.put_if_absent(f"{_prefix(head.group_id, head.checkpoint_id)}{head.term:010d}.json", body)
    check(store, head)


def check(store: ManifestStore, head: Manifest) -> None:
    """Raise ``Fenced`` where a higher term than ``head``'s works on its checkpoint."""
    found, _ordered_at = newest(store, head.group_id, head.checkpoint_id)
    if found > head.term:
        raise Fenced(
            f"checkpoint {head.checkpoint_id} is worked on in term {found}, ours is {head.term}",
            code="stale-term",
            hint="Another node has taken the work over; nothing of ours was published.",
            checkpoint=head.checkpoint_id,
            term=head.term,
            newest=found,
        )


def newest(store: ManifestStore, group_id: str, checkpoint_id: str) -> tuple[int, float]:
    """Return the highest term that works, or has worked, on a checkpoint, and when the checkpoint was ordered."""
    prefix = _prefix(group_id, checkpoint_id)
    found = {key.removeprefix(prefix).removesuffix(".json"): key for key in store.list(prefix)}
    terms = {int(term): key for term, key in found.items() if term.isdigit()}
    if not terms:
        return 1, 0.0
    term = max(terms)
    return term, float(json.loads(store.get(terms[term]))["ordered_at"])


def _prefix(group_id: str, checkpoint_id: str) -> str:
    return f"terms/{group_id}/{checkpoint_id}-"
