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
  - Returns checkpoints, the newest first, with their level of consistency and what the cycle moved that made them.
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
      label: null
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
    found = client.items("/checkpoints", given(params, "plan", "machine", "group", "limit"))
    return dict(changed=False, checkpoints=found)


def main():
    run(
        read,
        dict(
            checkpoint_id=dict(type="str"),
            plan=dict(type="str"),
            machine=dict(type="str"),
            group=dict(type="str"),
            limit=dict(type="int", default=100),
        ),
        mutually_exclusive=[("checkpoint_id", other) for other in ("plan", "machine", "group")],
    )


if __name__ == "__main__":
    main()
