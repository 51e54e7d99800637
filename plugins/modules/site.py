#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site
short_description: Register a site between which machines are protected
version_added: 0.1.0
description:
  - A site is a place where one platform runs machines or keeps their copies. Replication nodes at a site do the work there.
  - Registering a site reaches nothing yet; a node has to be enrolled at it, see M(farshore.dr.replication_node).
author:
  - Farshore contributors (@farshore)
options:
  name:
    description:
      - Name of the site.
    type: str
    required: true
  platform:
    description:
      - What runs there. Needed with O(state=present). It cannot be changed later.
    type: str
    choices: [kvm, file, aws]
  description:
    description:
      - What people should know about the site.
    type: str
    default: ""
  data_listen:
    description:
      - Which side of a link waits for the data connections, the one where the machines run or the one that copies them.
      - It holds for data that leaves this site, where M(farshore.dr.site_link) does not say otherwise.
    type: str
    choices: [source, target]
    default: source
  state:
    description:
      - Whether the site is to be there.
      - A site that a plan or a node belongs to is not removed.
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
  - module: farshore.dr.site_info
  - module: farshore.dr.site_link
  - module: farshore.dr.replication_node
"""

EXAMPLES = r"""
- name: Register the site where the machines run
  farshore.dr.site:
    name: alpha
    platform: kvm
    description: Data centre in the harbour

- name: Remove a site that is no longer used
  farshore.dr.site:
    name: gamma
    state: absent
"""

RETURN = r"""
site:
  description: The site as it is now; empty where it is absent, and what it would be in check mode.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the site.
      type: str
    platform:
      description: What runs there.
      type: str
    state:
      description: V(online) when a node of the site answers, V(offline) when none does, V(no-node) when it has none.
      type: str
    nodes:
      description: Names of the nodes.
      type: list
      elements: str
    machine_count:
      description: How many machines were found there.
      type: int
  sample:
    name: alpha
    platform: kvm
    description: Data centre in the harbour
    state: "no-node"
    nodes: []
    machine_count: 0
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import NotFound
from ansible_collections.farshore.dr.plugins.module_utils.module import given, outcome, run


def ensure(module, client):
    params = module.params
    path = f"/sites/{segment(params['name'])}"
    if params["state"] == "present":
        body = given(params, "platform", "description", "data_listen")
        answer = client.write("PUT", path, body, preview=path + ":preview")
        return outcome(answer, site=answer.value or {})
    try:
        before = client.get(path)
    except NotFound:
        return dict(changed=False, site={})
    answer = client.write("DELETE", path, guess=Answer(True, None, before=before, after={}))
    return outcome(answer, site={})


def main():
    run(
        ensure,
        dict(
            name=dict(type="str", required=True),
            platform=dict(type="str", choices=["kvm", "file", "aws"]),
            description=dict(type="str", default=""),
            data_listen=dict(type="str", choices=["source", "target"], default="source"),
            state=dict(type="str", choices=["present", "absent"], default="present"),
        ),
        required_if=[("state", "present", ["platform"])],
    )


if __name__ == "__main__":
    main()
