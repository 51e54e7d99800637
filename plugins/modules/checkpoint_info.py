#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_info
short_description: Read checkpoints
version_added: 0.1.0
description:
  - Returns checkpoints, the newest first, with their level of consistency and its evidence, what the cycle moved that made them,
    why retention keeps them, and how much they look encrypted.
author:
  - Farshore contributors (@farshore)
options:
  checkpoint_id:
    description:
      - Identifier of one checkpoint, which has to exist.
    type: str
  plan:
    description:
      - Only checkpoints of this plan.
    type: str
  machine:
    description:
      - Only checkpoints that hold this machine.
    type: str
  group:
    description:
      - Only checkpoints of this consistency group.
    type: str
  clean:
    description:
      - Whether to leave out checkpoints that are suspect, or show signs of encryption, or follow one that does.
        The first that is left is what V(latest_clean) means in M(farshore.dr.drill) and M(farshore.dr.failover).
    type: bool
    default: false
  limit:
    description:
      - At most this many.
    type: int
    default: 100
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.checkpoint
"""

EXAMPLES = r"""
- name: Read the newest checkpoint of the shop
  farshore.dr.checkpoint_info:
    plan: shop
    limit: 1

- name: Find the newest checkpoint from before an encryption
  farshore.dr.checkpoint_info:
    plan: shop
    machine: db
    clean: true
    limit: 1
"""

RETURN = r"""
checkpoints:
  description: The checkpoints that were found, the newest first.
  returned: success
  type: list
  elements: dict
  sample:
    - checkpoint_id: cp-31b7
      group_id: grp-shop
      plan: shop
      level: group
      sequence: 4
      ordered_at: "2026-01-31T12:00:00Z"
      published_at: "2026-01-31T12:00:02Z"
      pinned: false
      hold: null
      label: null
      retention:
        stays: true
        reasons: [the newest, count]
      suspicion:
        verdict: clean
        score: 3
        reasons: []
        tainted_by: null
        cleared: null
      machines: [db, web]
      stats:
        mode: incremental
        disk_bytes: 402653184
        moved_bytes: 1048576
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.module import given, run


def read(module, client):
    params = module.params
    if params["checkpoint_id"] is not None:
        return dict(changed=False, checkpoints=[client.get(f"/checkpoints/{segment(params['checkpoint_id'])}")])
    query = given(params, "plan", "machine", "group", "limit")
    if params["clean"]:
        query["clean"] = "true"
    found = client.items("/checkpoints", query)
    return dict(changed=False, checkpoints=found)


def main():
    run(
        read,
        dict(
            checkpoint_id=dict(type="str"),
            plan=dict(type="str"),
            machine=dict(type="str"),
            group=dict(type="str"),
            clean=dict(type="bool", default=False),
            limit=dict(type="int", default=100),
        ),
        mutually_exclusive=[("checkpoint_id", other) for other in ("plan", "machine", "group")],
    )


if __name__ == "__main__":
    main()
