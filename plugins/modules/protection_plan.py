#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: protection_plan
short_description: Store a protection plan
version_added: 0.1.0
description:
  - A protection plan says which machines are copied where, how much data may be lost, and how they come up again.
  - This module owns what a plan says. Whether it is active is the matter of M(farshore.dr.protect).
  - Every change makes a new revision; the control plane keeps the earlier ones.
author:
  - Farshore contributors (@farshore)
options:
  name:
    description:
      - Name of the plan, the same as in its content.
    type: str
    required: true
  src:
    description:
      - File on the host of the module that holds the plan as YAML. It is sent as it is, so that an error names its line.
      - Files of tasks that the plan names under C(hooks), or in probes of type V(ansible), are relative to the folder of
        this file. They are sent with it; of C(hooks/storage.yml) the whole folder C(hooks).
    type: path
  definition:
    description:
      - The plan itself, as an alternative to O(src).
    type: dict
  files_from:
    description:
      - Folder that the files of the plan's hooks are in. The default is the folder of O(src).
    type: path
  state:
    description:
      - Whether the plan is to be there. An active plan is not removed; make it unprotected first.
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
  - module: farshore.dr.protect
  - module: farshore.dr.protection_plan_info
"""

EXAMPLES = r"""
- name: Store the plan of the shop
  farshore.dr.protection_plan:
    name: shop
    src: "{{ playbook_dir }}/plans/shop.yml"

- name: Store a plan that is written here
  farshore.dr.protection_plan:
    name: wiki
    definition:
      name: wiki
      source_site: alpha
      target_site: beta
      rpo: 15m
      machines:
        - name: wiki-1
          probes:
            - type: http
              port: 80
              contains: Welcome
      networks:
        - source: office
          drill:
            subnet: 10.99.0.0/24
          failover: office-recovery

# plans/shop.yml says: hooks: {pre_failover: hooks/storage.yml, post_failover: gate}
- name: Store a plan with hooks, and the folder plans/hooks with it
  farshore.dr.protection_plan:
    name: shop
    src: "{{ playbook_dir }}/plans/shop.yml"
"""

RETURN = r"""
plan:
  description: The plan as it is now; empty where it is absent, and what it would be in check mode.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the plan.
      type: str
    revision:
      description: Grows by one with each change.
      type: int
    activity:
      description: V(inactive), V(active) or V(paused).
      type: str
    active_site:
      description: Where its machines run.
      type: str
    definition:
      description: What the plan says.
      type: dict
  sample:
    name: shop
    revision: 1
    activity: inactive
    active_site: alpha
costs:
  description:
    - What the replication of the plan is likely to cost, an estimate by list prices or those of the site's settings.
    - In diff mode it is also shown beside the plan, as C(estimated_costs), before and after the change.
  returned: in check mode and diff mode, where the platform of one of the sites has prices
  type: dict
  contains:
    currency:
      description: Of all amounts.
      type: str
    first_copy:
      description: What the first copy costs once, in C(total) and for C(calls), C(storage) and C(transfer).
      type: dict
    per_month:
      description: What a month costs when as many checkpoints are kept as retention asks for.
      type: dict
    basis:
      description: V(measured) where cycles have told how much changes, else V(assumed).
      type: str
    changed_gib_per_day:
      description: How much changes.
      type: float
    prices:
      description: Region, date and source of the prices.
      type: list
      elements: dict
    unknown_machines:
      description: Machines that are not counted, for their disks are not known.
      type: list
      elements: str
  sample:
    currency: USD
    first_copy: {calls: 1.23, storage: 0.0, transfer: 0.0, total: 1.23}
    per_month: {calls: 17.69, storage: 7.75, transfer: 0.0, total: 25.44}
    basis: measured
    changed_gib_per_day: 48.0
    prices: [{region: us-east-1, as_of: 2026-11, source: "https://aws.amazon.com/ebs/pricing/"}]
    unknown_machines: []
"""

import json
import os

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter, NotFound
from ansible_collections.farshore.dr.plugins.module_utils.hook_files import collect, may_name_files
from ansible_collections.farshore.dr.plugins.module_utils.module import outcome, run


def content(params):
    """Return the body that carries the plan: the text of a file, or a dict."""
    if params["src"] is None:
        return {"definition": params["definition"]}
    try:
        with open(params["src"], encoding="utf-8") as source:
            return {"source": source.read()}
    except OSError as error:
        raise BadParameter(f"{params['src']} cannot be read: {error.strerror}", field="src") from error
    except UnicodeDecodeError as error:
        raise BadParameter(f"{params['src']} is no UTF-8 text: {error}", field="src") from error


def with_files(params, client, path):
    """Return the body that carries the plan, and the files of its hooks where it names some."""
    body = content(params)
    root = params["files_from"] or (os.path.dirname(params["src"]) if params["src"] else None)
    if root is None or not may_name_files(body.get("source") or json.dumps(body["definition"])):
        return body
    named = client.preview(path + ":preview", body).get("files") or []
    files = collect(root, named)
    return dict(body, files=files) if files else body


def ensure(module, client):
    params = module.params
    path = f"/plans/{segment(params['name'])}"
    if params["state"] == "present":
        answer = client.write("PUT", path, with_files(params, client, path), preview=path + ":preview")
        result = outcome(answer, plan=answer.value or {})
        costs = answer.preview.get("costs") or {}
        if costs.get("after"):
            result["costs"] = costs["after"]
            for side in ("before", "after"):
                if costs[side] and result["diff"][side]:
                    result["diff"][side] = dict(result["diff"][side], estimated_costs=costs[side])
        return result
    try:
        before = client.get(path)
    except NotFound:
        return dict(changed=False, plan={})
    answer = client.write("DELETE", path, guess=Answer(True, None, before=before.get("definition") or before, after={}))
    return outcome(answer, plan={})


def main():
    run(
        ensure,
        dict(
            name=dict(type="str", required=True),
            src=dict(type="path"),
            definition=dict(type="dict"),
            files_from=dict(type="path"),
            state=dict(type="str", choices=["present", "absent"], default="present"),
        ),
        mutually_exclusive=[("src", "definition")],
        required_if=[("state", "present", ["src", "definition"], True)],
    )


if __name__ == "__main__":
    main()
