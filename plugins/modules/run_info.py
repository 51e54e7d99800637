#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: run_info
short_description: Read runs, or wait for one
version_added: 0.1.0
description:
  - Returns runs, the newest first, with their steps, and what came out for each machine.
  - Can wait until something changes in one run, or until it ends. It never fails because the run did; look at its state.
author:
  - Farshore contributors (@farshore)
options:
  run_id:
    description:
      - Identifier of one run, which has to exist.
    type: str
  plan:
    description:
      - Only runs of this plan.
    type: str
  kind:
    description:
      - Only runs of this kind.
    type: str
    choices: [replicate, checkpoint, drill, failover, migrate, reprotect, rollback, scrub, cleanup, detach, retire, approval]
  state:
    description:
      - Only runs in this state. V(open) stands for all that have not ended.
    type: str
    choices: [open, pending, waiting-approval, running, paused, succeeded, partial, failed, cancelled]
  limit:
    description:
      - At most this many.
    type: int
    default: 20
  wait_for:
    description:
      - V(none) returns at once.
      - V(change) returns when there is something that is not in O(told), when the run has ended, or after O(wait_timeout).
      - V(end) returns when the run has ended, and fails after O(wait_timeout).
      - Needs O(run_id).
    type: str
    choices: [none, change, end]
    default: none
  told:
    description:
      - What RV(told) was in an earlier result, so that RV(news) holds only what has happened since.
    type: list
    elements: str
    default: []
  wait_timeout:
    description:
      - Seconds to wait at most.
    type: int
    default: 3600
  wait_interval:
    description:
      - Seconds between the first two looks at the run; the pauses grow up to 15 seconds.
    type: float
    default: 1.0
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.run
  - module: farshore.dr.drill
  - module: farshore.dr.failover
  - module: farshore.dr.replicate
"""

EXAMPLES = r"""
- name: Wait for a run that was started with wait false
  farshore.dr.run_info:
    run_id: "{{ started.run.run_id }}"
    wait_for: end
    wait_timeout: 1800
  register: ended

- name: Fail where it did not end well
  ansible.builtin.assert:
    that: ended.runs[0].state == "succeeded"
    fail_msg: "{{ ended.runs[0].error.detail | default('see ' ~ ended.runs[0].report_url) }}"
"""

RETURN = r"""
runs:
  description: The runs that were found, the newest first.
  returned: success
  type: list
  elements: dict
  sample:
    - run_id: run-8a21
      kind: drill
      plan: shop
      state: succeeded
      started_at: "2026-01-31T12:00:00Z"
      ended_at: "2026-01-31T12:00:41Z"
      url: https://127.0.0.1:8443/runs/run-8a21
      report_url: https://127.0.0.1:8443/api/v1/runs/run-8a21/report
      next: ""
      approval: null
      steps:
        - name: machine-create
          machine: db
          state: succeeded
          seconds: 1.2
      machines:
        - name: db
          state: green
          rto_s: 14.2
          probes: []
ended:
  description: Whether the run has ended, well or not.
  returned: when O(run_id) is set
  type: bool
  sample: true
news:
  description: Sentences about what has happened since O(told), in the order of the run's steps.
  returned: when O(run_id) is set
  type: list
  elements: str
  sample:
    - "machine-create db: succeeded after 1.2 s"
told:
  description: What to give as O(told) next time.
  returned: when O(run_id) is set
  type: list
  elements: str
progress:
  description: How far the run is; empty where it does not say.
  returned: when O(run_id) is set
  type: str
  sample: 12.0 of 48.5 MiB
"""

from ansible_collections.farshore.dr.plugins.module_utils.errors import WaitTimeout
from ansible_collections.farshore.dr.plugins.module_utils.module import given, run
from ansible_collections.farshore.dr.plugins.module_utils.runs import news, progress
from ansible_collections.farshore.dr.plugins.module_utils.waiting import ENDED, Waiter


KINDS = [
    "replicate",
    "checkpoint",
    "drill",
    "failover",
    "migrate",
    "reprotect",
    "rollback",
    "scrub",
    "cleanup",
    "detach",
    "retire",
    "approval",
]
STATES = ["open", "pending", "waiting-approval", "running", "paused", "succeeded", "partial", "failed", "cancelled"]


def waited(params, client):
    """Return the run once what ``wait_for`` says has come."""
    run_id = params["run_id"]
    if params["wait_for"] == "none":
        return client.run(run_id)
    waiting = Waiter(client, params["wait_timeout"], params["wait_interval"])
    if params["wait_for"] == "end":
        return waiting.until(run_id, lambda found: found.get("state") in ENDED)
    try:
        return waiting.until(run_id, lambda found: found.get("state") in ENDED or news(found, params["told"])[0])
    except WaitTimeout as nothing_new:
        return nothing_new.result["run"]


def read(module, client):
    params = module.params
    if params["run_id"] is None:
        listed = client.items("/runs", given(params, "plan", "kind", "state", "limit"))
        return dict(changed=False, runs=[client.located(one) for one in listed])
    found = waited(params, client)
    sentences, told = news(found, params["told"])
    return dict(
        changed=False,
        runs=[found],
        ended=found.get("state") in ENDED,
        news=sentences,
        told=told,
        progress=progress(found),
    )


def main():
    run(
        read,
        dict(
            run_id=dict(type="str"),
            plan=dict(type="str"),
            kind=dict(type="str", choices=KINDS),
            state=dict(type="str", choices=STATES),
            limit=dict(type="int", default=20),
            wait_for=dict(type="str", choices=["none", "change", "end"], default="none"),
            told=dict(type="list", elements="str", default=[]),
            wait_timeout=dict(type="int", default=3600),
            wait_interval=dict(type="float", default=1.0),
        ),
        mutually_exclusive=[("run_id", other) for other in ("plan", "kind", "state")],
        required_if=[("wait_for", "change", ["run_id"]), ("wait_for", "end", ["run_id"])],
    )


if __name__ == "__main__":
    main()
