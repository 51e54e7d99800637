#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: replication_node
short_description: Register a replication node at a site
version_added: 0.1.0
description:
  - A replication node is the process that does the work of a site. It has to be registered before it can enrol.
  - This module changes the record in the control plane. The role P(farshore.dr.replication_node#role) also installs the node,
    enrols and starts it.
author:
  - Farshore contributors (@farshore)
options:
  name:
    description:
      - Name of the node.
    type: str
    required: true
  site:
    description:
      - Site that the node works for. Needed with O(state=present).
    type: str
  roles:
    description:
      - What the node does. V(replication) moves data, V(recovery) starts machines and tries their probes.
    type: list
    elements: str
    choices: [replication, recovery]
    default: [replication, recovery]
  data_address:
    description:
      - Address and port, V(HOST:PORT), where the nodes of other sites reach this node's data listener.
      - Needed with O(state=present).
    type: str
  enrolment_token:
    description:
      - Whether to ask for a token with which the node can enrol once, within an hour.
      - It is returned in RV(enrolment), so set C(no_log) on the task. The task is then always changed.
      - Ignored in check mode.
    type: bool
    default: false
  state:
    description:
      - Whether the node is to be registered. With V(absent) its certificate is refused from then on.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.site
"""

EXAMPLES = r"""
- name: Register a node
  farshore.dr.replication_node:
    name: alpha-1
    site: alpha
    data_address: alpha-1.example.net:9101

- name: Get a token for its enrolment
  farshore.dr.replication_node:
    name: alpha-1
    site: alpha
    data_address: alpha-1.example.net:9101
    enrolment_token: true
  register: node
  no_log: true
"""

RETURN = r"""
node:
  description: The node as the control plane knows it; empty where it is absent.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the node.
      type: str
    site:
      description: Its site.
      type: str
    roles:
      description: What it does.
      type: list
      elements: str
    data_address:
      description: Where other nodes reach it.
      type: str
    state:
      description: V(new) before it enrolled, V(enrolled), V(online) or V(offline).
      type: str
    certificate_not_after:
      description: When its certificate ends.
      type: str
  sample:
    name: alpha-1
    site: alpha
    roles: [replication, recovery]
    data_address: 127.0.0.1:9101
    state: new
enrolment:
  description: What the node needs to enrol. Secret.
  returned: when O(enrolment_token=true) and not in check mode
  type: dict
  contains:
    token:
      description: The token, good for one enrolment.
      type: str
    expires_at:
      description: Until when.
      type: str
    ca_pem:
      description: Certificate of the authority of the control plane.
      type: str
    ca_sha256:
      description: Fingerprint of that certificate.
      type: str
    node_url:
      description: Address that the node asks for its work.
      type: str
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import NotFound
from ansible_collections.farshore.dr.plugins.module_utils.module import given, outcome, run


def ensure(module, client):
    params = module.params
    path = f"/nodes/{segment(params['name'])}"
    if params["state"] == "present":
        body = given(params, "site", "roles", "data_address")
        answer = client.write("PUT", path, body, preview=path + ":preview")
        result = outcome(answer, node=answer.value or {})
        if params["enrolment_token"]:
            result["changed"] = True
            if not client.check_mode:
                result["enrolment"] = client.write("POST", path + ":token", {}).value
        return result
    try:
        before = client.get(path)
    except NotFound:
        return dict(changed=False, node={})
    answer = client.write("DELETE", path, guess=Answer(True, None, before=before, after={}))
    return outcome(answer, node={})


def main():
    run(
        ensure,
        dict(
            name=dict(type="str", required=True),
            site=dict(type="str"),
            roles=dict(
                type="list",
                elements="str",
                choices=["replication", "recovery"],
                default=["replication", "recovery"],
            ),
            data_address=dict(type="str"),
            enrolment_token=dict(type="bool", default=False, no_log=False),
            state=dict(type="str", choices=["present", "absent"], default="present"),
        ),
        required_if=[("state", "present", ["site", "data_address"])],
    )


if __name__ == "__main__":
    main()
