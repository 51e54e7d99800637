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
  wait_for:
    description:
      - V(none) returns at once.
      - V(online) returns when a node of the site answers and has told what is there, and fails after O(wait_timeout).
        Needs O(name).
    type: str
    choices: [none, online]
    default: none
  wait_timeout:
    description:
      - Seconds to wait at most.
    type: int
    default: 60
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.site
"""

EXAMPLES = r"""
- name: Read all sites
  farshore.dr.site_info:

- name: Wait until a node of a site answers
  farshore.dr.site_info:
    name: alpha
    wait_for: online
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

import time

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import WaitTimeout
from ansible_collections.farshore.dr.plugins.module_utils.module import run

PAUSE_S = 1.0


def online(client, name, timeout_s):
    """Return the site once one of its nodes answers and has told what is there."""
    limit = time.monotonic() + timeout_s
    while True:
        site = client.get(f"/sites/{segment(name)}")
        if site.get("state") == "online" and site.get("inventory_at"):
            return site
        if time.monotonic() >= limit:
            said = "has not told what is there" if site.get("state") == "online" else f"is {site.get('state')}"
            error = WaitTimeout(
                f"site {name} {said} after {timeout_s} seconds",
                field="name",
                hint=f"Look at the log of its nodes: {', '.join(site.get('nodes') or ()) or 'it has none'}.",
            )
            error.result = {"sites": [site]}
            raise error
        time.sleep(PAUSE_S)


def read(module, client):
    params = module.params
    name = params["name"]
    if params["wait_for"] == "online":
        return dict(changed=False, sites=[online(client, name, params["wait_timeout"])])
    found = client.items("/sites") if name is None else [client.get(f"/sites/{segment(name)}")]
    return dict(changed=False, sites=found)


def main():
    run(
        read,
        dict(
            name=dict(type="str"),
            wait_for=dict(type="str", choices=["none", "online"], default="none"),
            wait_timeout=dict(type="int", default=60),
        ),
        required_if=[("wait_for", "online", ["name"])],
    )


if __name__ == "__main__":
    main()
