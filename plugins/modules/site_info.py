#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_info
short_description: Read sites
version_added: 0.1.0
description:
  - Returns one site or all, with the networks and the room for copies that were found there.
author:
  - Farshore contributors (@farshore)
options:
  name:
    description:
      - Name of one site, which has to exist. Without it, all are returned.
    type: str
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.site
"""

EXAMPLES = r"""
- name: Wait until the nodes of a site answer
  farshore.dr.site_info:
    name: alpha
  register: found
  until: found.sites[0].state == "online" and found.sites[0].inventory_at
  retries: 30
  delay: 2
"""

RETURN = r"""
sites:
  description: The sites that were found.
  returned: success
  type: list
  elements: dict
  sample:
    - name: alpha
      platform: kvm
      state: online
      nodes: [alpha-1]
      machine_count: 2
      networks:
        - name: app
          subnet: 10.20.0.0/24
          isolated: false
          active: true
      pool:
        path: /srv/pool
        capacity_bytes: 107374182400
        free_bytes: 96636764160
      inventory_at: "2026-01-31T12:00:00Z"
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.module import run


def read(module, client):
    name = module.params["name"]
    found = client.items("/sites") if name is None else [client.get(f"/sites/{segment(name)}")]
    return dict(changed=False, sites=found)


def main():
    run(read, dict(name=dict(type="str")))


if __name__ == "__main__":
    main()
