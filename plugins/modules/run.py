#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: run
short_description: Pause, resume, approve, cancel or retry a run
version_added: 0.1.0
description:
  - Asks something of a run that a drill, a failover or another verb has started.
  - A run that is asked for what it does already is left as it is.
author:
  - Farshore contributors (@farshore)
options:
  run_id:
    description:
      - Identifier of the run.
    type: str
    required: true
  state:
    description:
      - V(paused) lets the run begin nothing new; what it has at work ends. V(resumed) lets it go on, also from a gate.
      - V(approved) agrees to a run whose plan asks for that. Whoever has ordered it cannot approve it, and each token
        counts once.
      - V(cancelled) stops the run at its next safe point; it cleans up behind itself. A failover cannot be cancelled any
        more once its epoch was raised.
      - V(retried) goes on with a run that failed, was cancelled or ended partial, in a run of its own. What succeeded is
        not done again.
    type: str
    required: true
    choices: [paused, resumed, approved, cancelled, retried]
  step:
    description:
      - With O(state=retried), the step that is done again, with those after it, for the machines that are not up. Without
        it the first one that did not succeed.
    type: str
    choices: [create, prepare, power on, validate]
  machine:
    description:
      - With O(state=retried), a machine that is done again although it is up.
    type: str
  wait:
    description:
      - Whether the module ends when the run is paused with O(state=paused), and with the other states when it has ended.
      - Except with O(state=cancelled) it fails where the run then has not succeeded.
      - With V(false) it ends at once; wait with M(farshore.dr.run_info).
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
    details: Says what would be asked, from the state that the run is in.
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.run_info
  - module: farshore.dr.failover
  - module: farshore.dr.drill
"""

EXAMPLES = r"""
- name: Agree to a failover that somebody else has ordered
  farshore.dr.run:
    run_id: "{{ run_id }}"
    state: approved
    wait: false

- name: Hold a failover until the storage team is done
  farshore.dr.run:
    run_id: "{{ run_id }}"
    state: paused

- name: Let it go on, and wait for its end
  farshore.dr.run:
    run_id: "{{ run_id }}"
    state: resumed

- name: Go on with what has failed, from the start of the machines
  farshore.dr.run:
    run_id: "{{ run_id }}"
    state: retried
    step: power on
"""

RETURN = r"""
run:
  description: The run as it is when the module ends; with O(state=retried) the run that goes on.
  returned: success
  type: dict
  sample:
    run_id: run-8a21
    kind: failover
    plan: shop
    state: paused
    next: "paused until it is resumed: `farshore run resume run-8a21`"
    retry_of: null
    approval:
      people: 1
      by:
        - actor: dana (tok-17c0)
          at: "2026-01-31T12:00:00Z"
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter
from ansible_collections.farshore.dr.plugins.module_utils.module import given, outcome, run, waiter
from ansible_collections.farshore.dr.plugins.module_utils.waiting import ENDED, wait_argument_spec

VERBS = dict(paused="pause", resumed="resume", approved="approve", cancelled="cancel", retried="retry")


def guess(state, found):
    """Return what asking for ``state`` would do to the run ``found``."""
    before = found.get("state")
    open_now = before not in ENDED
    changed, after = {
        "paused": (open_now and not found.get("pause_requested"), "paused"),
        "resumed": (open_now and bool(found.get("pause_requested")), "running"),
        "approved": (before == "waiting-approval", "approved"),
        "cancelled": (open_now and not found.get("cancel_requested"), "cancelled"),
        "retried": (not open_now and before != "succeeded" and not found.get("retried_by"), "retried"),
    }[state]
    return Answer(changed, None, before=dict(state=before), after=dict(state=after if changed else before))


def ask(module, client):
    params = module.params
    state = params["state"]
    if state != "retried":
        for name in ("step", "machine"):
            if params[name] is not None:
                raise BadParameter(f"{name} has no meaning with state={state}", field=name, hint="Leave it out.")
    found = client.run(params["run_id"])
    expected = guess(state, found)
    answer = client.write(
        "POST",
        f"/runs/{segment(params['run_id'])}:{VERBS[state]}",
        given(params, "step", "machine"),
        guess=expected,
        idempotency_key=params["idempotency_key"],
    )
    if client.check_mode:
        return outcome(answer, run=found)
    if not answer.changed:
        answer.after = answer.before
    made = answer.value["run"] if state == "retried" else answer.value
    run_id = made["run_id"]
    if not params["wait"]:
        return outcome(answer, run=client.located(made))
    waiting = waiter(module, client)
    if state == "paused":
        ended = waiting.until(run_id, lambda seen: seen.get("state") in ENDED or seen.get("state") == "paused")
    elif state == "cancelled":
        ended = waiting.until(run_id, lambda seen: seen.get("state") in ENDED)
    else:
        ended = waiting.until_ended(run_id)
    return outcome(answer, run=ended)


def main():
    run(
        ask,
        dict(
            wait_argument_spec(),
            run_id=dict(type="str", required=True),
            state=dict(type="str", required=True, choices=["paused", "resumed", "approved", "cancelled", "retried"]),
            step=dict(type="str", choices=["create", "prepare", "power on", "validate"]),
            machine=dict(type="str"),
        ),
    )


if __name__ == "__main__":
    main()
