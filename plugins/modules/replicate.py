#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: replicate
short_description: Replicate now
version_added: 0.1.0
description:
  - Runs one cycle of replication now, which ends with a published checkpoint, instead of waiting for the schedule.
  - With O(max_age) it does nothing where the newest checkpoint is younger than that.
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
  max_age:
    description:
      - No cycle is run where the newest checkpoint is younger than this. Such as V(90s), V(15m), V(4h) or seconds.
      - Without it, a cycle is run each time.
    type: str
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.checkpoint
  - module: farshore.dr.run_info
"""

EXAMPLES = r"""
- name: Replicate unless there is a checkpoint of the last five minutes
  farshore.dr.replicate:
    plan: shop
    max_age: 5m

- name: Start a cycle and go on
  farshore.dr.replicate:
    plan: shop
    wait: false
  register: started
"""

RETURN = r"""
run:
  description: The run that was started, as it ended or, with O(wait=false), as it began; null where none was needed.
  returned: success
  type: dict
  sample:
    run_id: run-5f0c
    kind: replicate
    plan: shop
    state: succeeded
    url: https://127.0.0.1:8443/runs/run-5f0c
    cycles:
      - group_id: grp-shop
        checkpoint_id: cp-31b7
        stats:
          mode: incremental
          disk_bytes: 402653184
          changed_bytes: 1048576
          moved_bytes: 1048576
          seconds: 1.9
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.durations import seconds
from ansible_collections.farshore.dr.plugins.module_utils.module import given, run
from ansible_collections.farshore.dr.plugins.module_utils.runs import conclude
from ansible_collections.farshore.dr.plugins.module_utils.waiting import wait_argument_spec


def ensure(module, client):
    params = module.params
    path = f"/plans/{segment(params['plan'])}"
    body = given(params, "machines")
    if params["max_age"] is not None:
        body["max_age_s"] = seconds(params["max_age"], "max_age")
    answer = client.write(
        "POST",
        path + ":replicate",
        body,
        preview=path + ":replicate-preview",
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
            max_age=dict(type="str"),
        ),
    )


if __name__ == "__main__":
    main()
