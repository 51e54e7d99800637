#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: protection_plan_info
short_description: Read protection plans
version_added: 0.1.0
description:
  - Returns one protection plan or all, with their state and how much data could be lost now.
author:
  - Farshore contributors (@farshore)
options:
  name:
    description:
      - Name of one plan, which has to exist. Without it, all are returned.
    type: str
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.protection_plan
"""

EXAMPLES = r"""
- name: Read the plan of the shop
  farshore.dr.protection_plan_info:
    name: shop
  register: found

- name: Fail where more data could be lost than the plan allows
  ansible.builtin.assert:
    that: found.plans[0].rpo_s <= found.plans[0].rpo_target_s
"""

RETURN = r"""
plans:
  description: The plans that were found.
  returned: success
  type: list
  elements: dict
  sample:
    - name: shop
      revision: 3
      activity: active
      active_site: alpha
      state: protected
      conditions: []
      epoch: 0
      rpo_s: 12.4
      rpo_target_s: 60
      machines:
        - name: db
          state: protected
          rpo_s: 12.4
          newest_checkpoint: cp-31b7
      groups: [grp-shop]
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.module import run


def read(module, client):
    name = module.params["name"]
    found = client.items("/plans") if name is None else [client.get(f"/plans/{segment(name)}")]
    return dict(changed=False, plans=found)


def main():
    run(read, dict(name=dict(type="str")))


if __name__ == "__main__":
    main()
