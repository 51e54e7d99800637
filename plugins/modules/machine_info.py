#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: machine_info
short_description: Read machines
version_added: 0.1.0
description:
  - Returns the machines that were found at the sites, with how they are protected.
author:
  - Farshore contributors (@farshore)
options:
  machine_id:
    description:
      - Identifier of one machine, which has to exist.
    type: str
  name:
    description:
      - Only machines of this name.
    type: str
  site:
    description:
      - Only machines of this site.
    type: str
  plan:
    description:
      - Only machines of this plan.
    type: str
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.protect
"""

EXAMPLES = r"""
- name: Read the machines of a site
  farshore.dr.machine_info:
    site: alpha
  register: found

- name: Name those that nobody protects
  ansible.builtin.debug:
    msg: "{{ found.machines | selectattr('state', 'eq', 'unprotected') | map(attribute='name') }}"
"""

RETURN = r"""
machines:
  description: The machines that were found.
  returned: success
  type: list
  elements: dict
  sample:
    - machine_id: 6a0e54c2-5d3e-4a8f-9b1c-2f7f4f1f1c11
      name: db
      site: alpha
      power: "on"
      plan: shop
      state: protected
      conditions: []
      rpo_s: 12.4
      newest_checkpoint: cp-31b7
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.module import given, run


def read(module, client):
    params = module.params
    if params["machine_id"] is not None:
        return dict(changed=False, machines=[client.get(f"/machines/{segment(params['machine_id'])}")])
    return dict(changed=False, machines=client.items("/machines", given(params, "name", "site", "plan")))


def main():
    run(
        read,
        dict(
            machine_id=dict(type="str"),
            name=dict(type="str"),
            site=dict(type="str"),
            plan=dict(type="str"),
        ),
        mutually_exclusive=[("machine_id", other) for other in ("name", "site", "plan")],
    )


if __name__ == "__main__":
    main()
