#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: failover
short_description: Make a site the one where the machines of a plan run
version_added: 0.1.0
description:
  - Declares at which site a plan is active. Where it is active there already, nothing is done.
  - With O(mode=planned) the machines are stopped cleanly and their last changes are copied, so that nothing is lost.
    Where something fails before the change of site is recorded, they are started again at the source.
  - With O(mode=unplanned) the source is not asked for anything; what was written after the checkpoint is lost.
  - Until a failover with O(commit=manual) is committed, O(state=rolled_back) gives it up.
  - The same module brings the machines back, with O(to_site) the site that they left, once M(farshore.dr.reprotect) has turned the replication.
author:
  - Farshore contributors (@farshore)
options:
  plan:
    description:
      - Name of the plan.
    type: str
    required: true
  to_site:
    description:
      - Site where the machines are to run. Required with O(state=present), and only used then, as all options below but O(force) and O(state).
    type: str
  mode:
    description:
      - Whether the source takes part.
    type: str
    choices: [planned, unplanned]
    default: planned
  checkpoint:
    description:
      - Only with O(mode=unplanned). V(latest), V(latest_clean), the identifier of a checkpoint or its beginning, a label, or a time in ISO 8601; then the
        newest one that is not younger.
      - V(latest_clean) is the newest that shows no signs of encryption and follows none that does.
      - Where it is not set, V(latest) is meant.
    type: str
  force:
    description:
      - With O(mode=unplanned), go on although the source still answers. With O(state=rolled_back), go back although the site that is given up does not
        answer; what runs there is fenced when it does. This is recorded.
    type: bool
    default: false
  recovery_settings:
    description:
      - Only with O(mode=unplanned). Whether machines are recovered with the settings of the plan as it is now, or with those that it had when the checkpoint
        was made (networks, addresses, sizes, boot groups, probes). As the plan says, where it is not set.
    type: str
    choices: [current, captured]
  allow_suspect:
    description:
      - Only with O(mode=unplanned). Whether a checkpoint may be taken that an audit or a scrub has found wanting. V(latest) and a time pass over such
        ones otherwise, and one that is named is refused.
    type: bool
  commit:
    description:
      - With V(manual) the failover can be rolled back, with O(state=rolled_back), until somebody commits it with O(state=committed). As the plan says, where
        it is not set.
    type: str
    choices: [auto, manual]
  groups:
    description:
      - Only the machines of these boot groups of the plan. The others run on where they are and are replicated; they can follow with a later task. A choice
        that tears apart machines which are kept consistent as one group, or that leaves out what a machine depends on, is refused.
      - All machines, where it is not set.
    type: list
    elements: str
  state:
    description:
      - With V(present) the machines run at O(to_site).
      - With V(committed) no failover of the plan is rolled back any more. Where none waits for that, nothing is done.
      - With V(rolled_back) no failover of the plan waits to be committed. What one that does has made is stopped and fenced, and the old machines are
        started again; what was written since the failover is not taken along. One that was committed is not rolled back, the task fails.
    type: str
    choices: [present, committed, rolled_back]
    default: present
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
    details: Says what would be made, started and re-addressed, in which order, and how much would be lost.
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.drill
  - module: farshore.dr.reprotect
  - module: farshore.dr.retire
  - module: farshore.dr.run_info
"""

EXAMPLES = r"""
- name: Show what a failover would do
  farshore.dr.failover:
    plan: shop
    to_site: beta
  check_mode: true
  diff: true

- name: Move the shop to the other site, losing nothing
  farshore.dr.failover:
    plan: shop
    to_site: beta

- name: Move only its database, and leave the way back open
  farshore.dr.failover:
    plan: shop
    to_site: beta
    groups: [database]
    commit: manual

- name: Give that up
  farshore.dr.failover:
    plan: shop
    state: rolled_back

- name: Bring the shop up at the other site, its own having burnt down
  farshore.dr.failover:
    plan: shop
    to_site: beta
    mode: unplanned
"""

RETURN = r"""
run:
  description: The run, as it ended or, with O(wait=false), as it began; null where nothing was to do, and with O(state=committed).
  returned: success
  type: dict
  sample:
    run_id: run-c3d9
    kind: failover
    plan: shop
    state: succeeded
    url: https://127.0.0.1:8443/runs/run-c3d9
    machines:
      - name: db
        state: green
        rpo_s: 0.0
        rto_s: 31.5
        checkpoint_id: cp-9e02
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter
from ansible_collections.farshore.dr.plugins.module_utils.module import given, outcome, run
from ansible_collections.farshore.dr.plugins.module_utils.runs import conclude
from ansible_collections.farshore.dr.plugins.module_utils.waiting import wait_argument_spec


def present(module, client):
    params = module.params
    if params["mode"] == "planned":
        for name in ("checkpoint", "force", "allow_suspect", "recovery_settings"):
            if params[name]:
                raise BadParameter(
                    f"{name} goes with an unplanned failover only",
                    field=name,
                    hint="A planned one always takes the last state of the stopped machines.",
                )
    path = f"/plans/{segment(params['plan'])}"
    answer = client.write(
        "POST",
        path + ":failover",
        given(
            params, "to_site", "mode", "commit", "groups", "checkpoint", "force", "allow_suspect", "recovery_settings"
        ),
        preview=path + ":failover-preview",
        idempotency_key=params["idempotency_key"],
    )
    return conclude(module, client, answer)


def committed(module, client):
    path = f"/plans/{segment(module.params['plan'])}"
    if client.get(path)["committed"]:
        return dict(changed=False, run=None)
    guess = Answer(True, None, before={"committed": False}, after={"committed": True})
    answer = client.write("POST", path + ":commit", guess=guess, idempotency_key=module.params["idempotency_key"])
    return outcome(answer, run=None)


def rolled_back(module, client):
    path = f"/plans/{segment(module.params['plan'])}"
    plan = client.get(path)
    rests = plan["committed"] and plan["turned"] and plan["state"] not in ("failing-over", "rolling-back")
    if rests and all(machine["active_site"] == plan["active_site"] for machine in plan["machines"]):
        return dict(changed=False, run=None)
    preview, key = path + ":rollback-preview", module.params["idempotency_key"]
    answer = client.write(
        "POST", path + ":rollback", given(module.params, "force"), preview=preview, idempotency_key=key
    )
    return conclude(module, client, answer)


def ensure(module, client):
    return {"present": present, "committed": committed, "rolled_back": rolled_back}[module.params["state"]](
        module, client
    )


def main():
    run(
        ensure,
        dict(
            wait_argument_spec(),
            plan=dict(type="str", required=True),
            to_site=dict(type="str"),
            groups=dict(type="list", elements="str"),
            state=dict(type="str", choices=["present", "committed", "rolled_back"], default="present"),
            commit=dict(type="str", choices=["auto", "manual"]),
            mode=dict(type="str", choices=["planned", "unplanned"], default="planned"),
            checkpoint=dict(type="str"),
            recovery_settings=dict(type="str", choices=["current", "captured"]),
            force=dict(type="bool", default=False),
            allow_suspect=dict(type="bool"),
        ),
        required_if=[("state", "present", ["to_site"])],
    )


if __name__ == "__main__":
    main()
