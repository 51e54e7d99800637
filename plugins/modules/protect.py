#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: protect
short_description: Begin, pause or end the protection of machines
version_added: 0.1.0
description:
  - Makes a protection plan active, so that its machines are replicated as often as it says, or ends that.
  - What a plan says is the matter of M(farshore.dr.protection_plan).
author:
  - Farshore contributors (@farshore)
options:
  plan:
    description:
      - Name of the plan.
    type: str
    required: true
  machines:
    description:
      - Names of machines of the plan. Without it, all of them.
    type: list
    elements: str
  state:
    description:
      - V(protected) replicates on schedule, V(paused) keeps everything but starts no cycle.
      - V(unprotected) ends it and removes from the source what replication left there, such as snapshots and bitmaps.
    type: str
    choices: [protected, paused, unprotected]
    default: protected
  keep_copies:
    description:
      - Whether the checkpoints at the target stay when O(state=unprotected).
    type: bool
    default: true
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.protection_plan
  - module: farshore.dr.replicate
"""

EXAMPLES = r"""
- name: Protect the shop
  farshore.dr.protect:
    plan: shop

- name: Start no cycle while the storage is serviced
  farshore.dr.protect:
    plan: shop
    state: paused

- name: End the protection and drop the copies
  farshore.dr.protect:
    plan: shop
    state: unprotected
    keep_copies: false
"""

RETURN = r"""
plan:
  description: The plan as it is now, and what it would be in check mode.
  returned: success
  type: dict
  sample:
    name: shop
    activity: active
    state: seeding
    rpo_s: null
    rpo_target_s: 60
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.module import given, outcome, run


def ensure(module, client):
    params = module.params
    path = f"/plans/{segment(params['plan'])}"
    answer = client.write(
        "POST",
        path + ":protect",
        given(params, "state", "machines", "keep_copies"),
        preview=path + ":protect-preview",
    )
    return outcome(answer, plan=answer.value or {})


def main():
    run(
        ensure,
        dict(
            plan=dict(type="str", required=True),
            machines=dict(type="list", elements="str"),
            state=dict(type="str", choices=["protected", "paused", "unprotected"], default="protected"),
            keep_copies=dict(type="bool", default=True),
        ),
    )


if __name__ == "__main__":
    main()
