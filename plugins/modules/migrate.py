#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: migrate
short_description: Move the machines of a plan to its target site for good
version_added: 0.1.0
description:
  - Does what a planned failover does, then retires the source. Its machines stay where they are, fenced, with their disks as they were and without change
    tracking. Nothing is replicated back, and the plan's protection ends. Where the plan was migrated already, nothing is done.
  - Where something fails before the change of site is recorded, the machines are started again at the source.
author:
  - Farshore contributors (@farshore)
options:
  plan:
    description:
      - Name of the plan.
    type: str
    required: true
  to_site:
    description:
      - The plan's target site, to be sure that it is the one that is meant.
    type: str
  groups:
    description:
      - Only the machines of these boot groups of the plan. The others stay protected where they are, to follow in a later wave. All, where it is not set.
    type: list
    elements: str
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
    details: Says what would be made, started and re-addressed, in which order.
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.failover
  - module: farshore.dr.retire
  - module: farshore.dr.run_info
"""

EXAMPLES = r"""
- name: Show what a migration would do
  farshore.dr.migrate:
    plan: shop
  check_mode: true
  diff: true

- name: Move the shop for good
  farshore.dr.migrate:
    plan: shop
    to_site: beta
"""

RETURN = r"""
run:
  description: The run, as it ended or, with O(wait=false), as it began; null where the plan was migrated already.
  returned: success
  type: dict
  sample:
    run_id: run-c3d9
    kind: migrate
    plan: shop
    state: succeeded
    url: https://127.0.0.1:8443/runs/run-c3d9
    machines:
      - name: db
        state: green
        rpo_s: 0.0
        rto_s: 31.5
        checkpoint_id: cp-9e02
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.module import given, run
from ansible_collections.farshore.dr.plugins.module_utils.runs import conclude
from ansible_collections.farshore.dr.plugins.module_utils.waiting import wait_argument_spec


def ensure(module, client):
    params = module.params
    path = f"/plans/{segment(params['plan'])}"
    answer = client.write(
        "POST",
        path + ":migrate",
        given(params, "to_site", "groups"),
        preview=path + ":migrate-preview",
        idempotency_key=params["idempotency_key"],
    )
    return conclude(module, client, answer)


def main():
    run(
        ensure,
        dict(
            wait_argument_spec(),
            plan=dict(type="str", required=True),
            to_site=dict(type="str"),
            groups=dict(type="list", elements="str"),
        ),
    )


if __name__ == "__main__":
    main()
