#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: drill
short_description: Rehearse a recovery
version_added: 0.1.0
description:
  - Starts the machines of a plan at the target site from a checkpoint, in a network of their own that leads nowhere,
    tries their probes, and removes all of it again. Replication goes on meanwhile.
  - Before the first machine is on, it is proven that the network leads nowhere; a drill where that fails is cleaned up and
    fails with C(not-isolated).
  - Drills that run by themselves are a matter of the plan, see C(drill.schedule) in M(farshore.dr.protection_plan).
  - A drill is an execution, so each task starts one, unless O(max_age) says that an earlier one will do.
author:
  - Farshore contributors (@farshore)
options:
  plan:
    description:
      - Name of the plan.
    type: str
    required: true
  checkpoint:
    description:
      - V(latest), V(latest_clean), the identifier of a checkpoint or its beginning, a label, or a time in ISO 8601; then the
        newest one that is not younger.
      - V(latest_clean) is the newest that shows no signs of encryption and follows none that does.
    type: str
    default: latest
  keep:
    description:
      - Whether the machines of the drill go on until a task with O(state=absent) ends it.
    type: bool
    default: false
  recovery_settings:
    description:
      - Whether machines are recovered with the settings of the plan as it is now, or with those that it had when the checkpoint
        was made (networks, addresses, sizes, boot groups, probes). As the plan says, where it is not set.
    type: str
    choices: [current, captured]
  allow_suspect:
    description:
      - Whether a checkpoint may be taken that an audit or a scrub has found wanting. V(latest) and a time pass over such
        ones otherwise, and one that is named is refused.
    type: bool
  groups:
    description:
      - Only the machines of these boot groups of the plan, which must not depend on others. All that were not moved to the other site, where it is not set.
    type: list
    elements: str
  max_age:
    description:
      - No drill is run where one succeeded within this time. Such as V(90s), V(15m), V(30d) or seconds.
    type: str
  state:
    description:
      - V(present) runs a drill, V(absent) ends one that was kept and removes what it made.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
    details: Says what would be made, in which order.
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.failover
  - module: farshore.dr.run_info
"""

EXAMPLES = r"""
- name: Rehearse the recovery of the shop from the newest checkpoint
  farshore.dr.drill:
    plan: shop

- name: Rehearse it unless that was done in the last 30 days
  farshore.dr.drill:
    plan: shop
    max_age: 30d

- name: Show what a drill would do
  farshore.dr.drill:
    plan: shop
  check_mode: true
  diff: true
"""

RETURN = r"""
run:
  description: The run, as it ended or, with O(wait=false), as it began; null where none was started.
  returned: success
  type: dict
  sample:
    run_id: run-8a21
    kind: drill
    plan: shop
    state: succeeded
    url: https://127.0.0.1:8443/runs/run-8a21
    machines:
      - name: db
        state: green
        rto_s: 14.2
        checkpoint_id: cp-31b7
    facts:
      isolation:
        proven: true
        canaries:
          - {network: farshore-drill-1, source: guest a, target: outside 198.18.0.2, control: false, reached: false}
        packets:
          - {network: farshore-drill-1, outside: 0, stopped: 20, admitted: 118}
      during:
        cycles_published: 2
        cycles_failed: 0
        cycles_skipped: 0
        resent_bytes: 0
      sights:
        db:
          screen_url: /api/v1/runs/run-8a21/machines/db/screen
          screen_sha256: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
          console_url: /api/v1/runs/run-8a21/machines/db/console
last:
  description: The drill that made a new one needless.
  returned: when O(max_age) is set and one was found
  type: dict
"""

import datetime

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.durations import seconds
from ansible_collections.farshore.dr.plugins.module_utils.module import given, run
from ansible_collections.farshore.dr.plugins.module_utils.runs import conclude
from ansible_collections.farshore.dr.plugins.module_utils.waiting import wait_argument_spec


def last_success(client, plan, max_age_s):
    """Return the newest drill of the plan that succeeded within ``max_age_s``, None where none did."""
    query = {"plan": plan, "kind": "drill", "state": "succeeded", "limit": 1}
    now = datetime.datetime.now(datetime.timezone.utc)
    for one in client.items("/runs", query):
        ended = datetime.datetime.fromisoformat(str(one.get("ended_at")).replace("Z", "+00:00"))
        if (now - ended).total_seconds() < max_age_s:
            return client.located(one)
    return None


def present(module, client):
    params = module.params
    if params["max_age"] is not None:
        last = last_success(client, params["plan"], seconds(params["max_age"], "max_age"))
        if last is not None:
            return dict(changed=False, run=None, last=last)
    path = f"/plans/{segment(params['plan'])}"
    answer = client.write(
        "POST",
        path + ":drill",
        given(params, "checkpoint", "keep", "groups", "allow_suspect", "recovery_settings"),
        preview=path + ":drill-preview",
        idempotency_key=params["idempotency_key"],
    )
    return conclude(module, client, answer)


def absent(module, client):
    params = module.params
    path = f"/plans/{segment(params['plan'])}"
    drilling = "drilling" in (client.get(path).get("conditions") or ())
    if not drilling:
        return dict(changed=False, run=None)
    guess = Answer(True, None, before={"drill": "kept"}, after={})
    answer = client.write("POST", path + ":drill-end", {}, guess=guess, idempotency_key=params["idempotency_key"])
    return conclude(module, client, answer)


def ensure(module, client):
    return present(module, client) if module.params["state"] == "present" else absent(module, client)


def main():
    run(
        ensure,
        dict(
            wait_argument_spec(),
            plan=dict(type="str", required=True),
            checkpoint=dict(type="str", default="latest"),
            recovery_settings=dict(type="str", choices=["current", "captured"]),
            keep=dict(type="bool", default=False),
            allow_suspect=dict(type="bool"),
            groups=dict(type="list", elements="str"),
            max_age=dict(type="str"),
            state=dict(type="str", choices=["present", "absent"], default="present"),
        ),
    )


if __name__ == "__main__":
    main()
