#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_info
short_description: Read how ready a plan is for its recovery
version_added: 0.1.0
description:
  - Returns what would stand in the way of a recovery of a plan now, what is worth knowing, and a score.
  - Looks at sites and their nodes, networks, addresses, room, the age and soundness of checkpoints, what has changed
    in the machines since, probes, drills, and whether a new control plane could take over. Asks the sites for nothing.
author:
  - Farshore contributors (@farshore)
options:
  plan:
    description:
      - Name of the plan.
    type: str
    required: true
  min_score:
    description:
      - Fail where the score is lower than this, or where something stands in the way of a recovery.
      - Where it is not set, the module only reports.
    type: int
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.drill
  - module: farshore.dr.failover
  - module: farshore.dr.catalog_info
"""

EXAMPLES = r"""
- name: Read how ready the shop is
  farshore.dr.preflight_info:
    plan: shop
  register: preflight

- name: Show what there is to do
  ansible.builtin.debug:
    msg: "{{ item.message }} {{ item.remedy }}"
  loop: "{{ preflight.findings }}"
  loop_control:
    label: "{{ item.code }}"

- name: Fail a nightly job where the shop could not be recovered
  farshore.dr.preflight_info:
    plan: shop
    min_score: 70
"""

RETURN = r"""
ready:
  description: Whether nothing stands in the way of a recovery, which is to say that no finding is an error.
  returned: success
  type: bool
  sample: true
score:
  description: From 0 to 100, which is all that could be asked.
  returned: success
  type: int
  sample: 84
findings:
  description: What was found, the worst first.
  returned: success
  type: list
  elements: dict
  sample:
    - code: drill-old
      severity: warning
      subject: shop
      message: the last drill that succeeded was 41 d ago
      remedy: "`farshore drill start shop`"
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import ApiError
from ansible_collections.farshore.dr.plugins.module_utils.module import run


def read(module, client):
    params = module.params
    found = client.get(f"/plans/{segment(params['plan'])}/preflight")
    result = dict(changed=False, ready=found["ready"], score=found["score"], findings=found["findings"])
    least = params["min_score"]
    if least is not None and (not found["ready"] or found["score"] < least):
        first = found["findings"][0] if found["findings"] else {}
        error = ApiError(
            f"plan {params['plan']} is {'ready' if found['ready'] else 'not ready'} with a score of {found['score']},"
            f" {least} was asked for: {first.get('message', '')}",
            code="not-ready",
            field="min_score",
            hint=first.get("remedy", ""),
        )
        error.result = result
        raise error
    return result


def main():
    run(read, dict(plan=dict(type="str", required=True), min_score=dict(type="int")))


if __name__ == "__main__":
    main()
