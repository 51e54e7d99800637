#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: reprotect
short_description: Replicate the machines of a plan from where they run now
version_added: 0.1.0
description:
  - After a failover, turns the replication of a plan, so that what runs now is copied back to the site that it left. Where it is copied from where it runs
    already, nothing is done.
  - The old primaries are fenced first, and that is read back. Their disks are kept as they are; the first copy begins with what they hold, and only what
    differs is sent.
  - To go on to a third site, apply the plan with M(farshore.dr.protection_plan) before, with the site where its machines run as C(source_site) and the
    third one as C(target_site). There the machines are copied whole, unless an earlier primary of theirs rests there. This is possible once a failover of
    all of them is committed and as long as it was not replicated back.
  - What follows is a M(farshore.dr.failover) to the other site whenever it is wanted, and a reprotect again.
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
      - Site that the machines are to be copied to, to be sure. It has to be the one that the plan left, or that it names as its target since, which is meant
        where this is not set.
    type: str
  accept_divergence:
    description:
      - After a failover with O(farshore.dr.failover#module:mode=unplanned), the old primary may hold what was written after the checkpoint and is nowhere
        else. It is kept, but what is copied goes without it; the reprotect is refused until this says that it is known.
    type: bool
    default: false
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
    details: Says which way the plan would be replicated, and which machines rest as they are.
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.failover
  - module: farshore.dr.migrate
  - module: farshore.dr.retire
  - module: farshore.dr.run_info
"""

EXAMPLES = r"""
- name: Copy the shop back to the site that it left
  farshore.dr.reprotect:
    plan: shop

- name: Replicate the shop from where it runs to a third site instead
  farshore.dr.protection_plan:
    name: shop
    src: plans/shop-beta-gamma.yml

- name: Copy it there
  farshore.dr.reprotect:
    plan: shop
    to_site: gamma

- name: Do it after a failover that was forced, the old side being of no interest
  farshore.dr.reprotect:
    plan: shop
    accept_divergence: true

- name: Fail back
  farshore.dr.failover:
    plan: shop
    to_site: alpha
"""

RETURN = r"""
run:
  description: The run, as it ended or, with O(wait=false), as it began; null where nothing had to be done.
  returned: success
  type: dict
  sample:
    run_id: run-c3d9
    kind: reprotect
    plan: shop
    state: succeeded
    url: https://127.0.0.1:8443/runs/run-c3d9
    machines:
      - name: db
        state: succeeded
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
        path + ":reprotect",
        given(params, "to_site", "accept_divergence"),
        preview=path + ":reprotect-preview",
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
            accept_divergence=dict(type="bool", default=False),
        ),
    )


if __name__ == "__main__":
    main()
