#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: retire
short_description: Delete the machines that failovers and migrations of a plan have left behind
version_added: 0.1.0
description:
  - After a failover or a migration, the old primary rests where it was, fenced and off, with its disks. This deletes it for good. Where there is none,
    nothing is done.
  - Refused is what somebody may still want back, such as before the failover was committed, and what a first copy begins with. A node deletes only what
    it finds fenced and off; images that another machine uses are kept, and told of.
  - A later reprotect to that site copies everything, for nothing rests there to begin with.
  - Old primaries are deleted by themselves where the plan says C(retire) with C(old_primaries=delete) and how long C(after) the commit.
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
      - Only what these machines of the plan have left behind. All, where it is not set.
    type: list
    elements: str
  site:
    description:
      - Only what rests at this site.
    type: str
  accept_divergence:
    description:
      - Whether to delete also what may hold data that is nowhere else, because a failover was forced, or rolled back. Such machines are never deleted without
        this.
    type: bool
    default: false
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
    details: Says which machines would be deleted, and how large their disks are.
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.failover
  - module: farshore.dr.migrate
  - module: farshore.dr.run_info
"""

EXAMPLES = r"""
- name: Show what would be deleted
  farshore.dr.retire:
    plan: shop
  check_mode: true
  diff: true

- name: Delete what the migration has left at the old site
  farshore.dr.retire:
    plan: shop
    site: alpha
"""

RETURN = r"""
run:
  description: The run, as it ended or, with O(wait=false), as it began; null where nothing was left behind. Its steps say what was removed and what was kept.
  returned: success
  type: dict
  sample:
    run_id: run-c3d9
    kind: retire
    plan: shop
    state: succeeded
    url: https://127.0.0.1:8443/runs/run-c3d9
    steps:
      - name: delete (until epoch 2)
        machine: db
        state: succeeded
        evidence:
          removed:
            - "disk vda: /var/lib/libvirt/images/db.qcow2 (20.0 GiB)"
            - machine db
          kept: []
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
        path + ":retire",
        given(params, "machines", "site", "accept_divergence"),
        preview=path + ":retire-preview",
        idempotency_key=params["idempotency_key"],
    )
    return conclude(module, client, answer)


def main():
    run(
        ensure,
        dict(
            wait_argument_spec(),
            plan=dict(type="str", required=True),
            machines=dict(type="list", elements="str"),
            site=dict(type="str"),
            accept_divergence=dict(type="bool", default=False),
        ),
    )


if __name__ == "__main__":
    main()
