#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint
short_description: Keep a checkpoint
version_added: 0.1.0
description:
  - Ensures that a plan has a checkpoint with a label, and that it is pinned or not. Runs a cycle of replication only where needed.
  - A pinned checkpoint is not removed by retention. One under a legal hold is removed by nobody.
  - With O(checkpoint_id) it acts on a checkpoint that exists already.
  - With O(state=verified), reads it back at its site and compares every byte with its manifest, unless that was done.
author:
  - Farshore contributors (@farshore)
options:
  plan:
    description:
      - Name of the plan.
    type: str
  label:
    description:
      - Label that names the checkpoint within the plan.
      - With O(checkpoint_id) and O(state=present), the label that the checkpoint is to have.
    type: str
  checkpoint_id:
    description:
      - Identifier of a checkpoint that exists, instead of O(plan) and O(label).
    type: str
  note:
    description:
      - A remark for people. Only with O(checkpoint_id).
    type: str
  hold:
    description:
      - Reason of a legal hold, such as a case number; the hold is placed if there is none. It keeps the checkpoint also when the
        plan is unprotected and its copies are dropped.
      - An empty text lifts the hold, which only a token with the role admin may.
    type: str
  cleared:
    description:
      - A sentence that says why the checkpoint is clean although it, or one before it, shows signs of encryption. V(latest_clean) then takes
        it, and those after it, again. Only with O(checkpoint_id); needs the role recovery-admin.
    type: str
  pin:
    description:
      - Whether retention has to keep it.
      - With O(state=absent) and V(false), a pinned checkpoint is unpinned first, otherwise it is refused.
      - With O(state=present), V(true) is meant where it is not set.
    type: bool
  consistency:
    description:
      - The least level that the checkpoint has to have.
      - V(application) freezes the guests by their agents, also in a plan that does not ask for it, and fails where one cannot be frozen.
    type: str
    choices: [machine, group, application]
  max_age:
    description:
      - A checkpoint that exists and is younger than this may get the label, instead of a new one.
        Such as V(90s), V(15m), V(4h) or seconds.
      - With O(state=verified), it is read back again if that was done longer ago than this.
    type: str
  state:
    description:
      - Whether a checkpoint with that label is to be there.
      - V(verified) needs one that is there. Damage fails the task, and is named by disk and offset in the run.
    type: str
    choices: [present, absent, verified]
    default: present
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.wait
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: farshore.dr.checkpoint_info
  - module: farshore.dr.replicate
"""

EXAMPLES = r"""
- name: Keep the state before the upgrade
  farshore.dr.checkpoint:
    plan: shop
    label: before-upgrade

- name: Keep one of which the guests' file systems are whole, until the audit is over
  farshore.dr.checkpoint:
    plan: shop
    label: audit-2026
    consistency: application
    hold: "audit 2026, case 4711"

- name: Say that the machine was restored, and is clean from this checkpoint on
  farshore.dr.checkpoint:
    checkpoint_id: cp-31b7
    cleared: restored from the checkpoint before the encryption

- name: Let it go
  farshore.dr.checkpoint:
    plan: shop
    label: before-upgrade
    pin: false
    state: absent

- name: Prove that it is whole
  farshore.dr.checkpoint:
    plan: shop
    label: before-upgrade
    state: verified
"""

RETURN = r"""
checkpoint:
  description: The checkpoint; null where it is absent, in check mode where a cycle has to run, and with O(wait=false).
  returned: success
  type: dict
  sample:
    checkpoint_id: cp-31b7
    group_id: grp-shop
    plan: shop
    level: group
    label: before-upgrade
    pinned: true
    hold:
    suspicion:
      verdict: clean
      score: 3
      reasons: []
      tainted_by:
      cleared:
    retention:
      stays: true
      reasons: [pinned]
    integrity: audited
    state: published
    published_at: "2026-01-31T12:00:00Z"
run:
  description: The run that makes it, or reads it back; null where none was needed.
  returned: success
  type: dict
runs:
  description: All runs that read checkpoints of the label back; a plan of several groups has one of each.
  returned: with O(state=verified)
  type: list
  elements: dict
"""

import datetime

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.durations import seconds
from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter
from ansible_collections.farshore.dr.plugins.module_utils.module import given, outcome, run
from ansible_collections.farshore.dr.plugins.module_utils.runs import conclude
from ansible_collections.farshore.dr.plugins.module_utils.waiting import wait_argument_spec


def chosen(client, params):
    """Return the published checkpoints that are meant: of an identifier, or of the plan with the label."""
    if params["checkpoint_id"] is not None:
        found = client.get(f"/checkpoints/{segment(params['checkpoint_id'])}")
        return [found] if found.get("state", "published") == "published" else []
    return labelled(client, params)


def labelled(client, params):
    """Return the published checkpoints of the plan that carry the label."""
    found = client.items("/checkpoints", {"plan": params["plan"], "limit": 1000})
    return [
        one for one in found if one.get("label") == params["label"] and one.get("state", "published") == "published"
    ]


def described(checkpoint):
    shown = dict((key, checkpoint.get(key)) for key in ("checkpoint_id", "label", "pinned", "level"))
    if checkpoint.get("hold"):
        shown["hold"] = checkpoint["hold"]["reason"]
    return shown


def change(module, client):
    """Bring one checkpoint that exists to what was asked: pin, label, note, hold, and whether it counts as clean."""
    params = module.params
    path = f"/checkpoints/{segment(params['checkpoint_id'])}"
    found = client.get(path)
    result = dict(changed=False, checkpoint=found, run=None)
    wanted = dict((key, params[name]) for key, name in (("pinned", "pin"), ("label", "label"), ("note", "note")))
    patch = dict((key, value) for key, value in wanted.items() if value is not None and found.get(key) != value)
    before = dict((key, found.get(key)) for key in patch)
    if patch:
        body = dict(("pin" if key == "pinned" else key, value) for key, value in patch.items())
        merge(result, client.write("PATCH", path, body, guess=Answer(True, found, before=before, after=patch)))
    held = (found.get("hold") or {}).get("reason", "")
    if params["hold"] is not None and params["hold"] != held:
        hold(client, result, path, found, params["hold"])
    verdict = (found.get("suspicion") or {}).get("verdict")
    if params["cleared"] is not None and verdict in ("flagged", "tainted"):
        guess = Answer(True, found, before=dict(suspicion=verdict), after=dict(suspicion="cleared"))
        merge(result, client.write("POST", path + ":clear", dict(note=params["cleared"]), guess=guess))
    return result


def hold(client, result, path, found, reason):
    """Place a legal hold, or lift it where the reason is empty."""
    before = dict(hold=(found.get("hold") or {}).get("reason", ""))
    guess = Answer(True, found, before=before, after=dict(hold=reason))
    if reason:
        merge(result, client.write("PUT", path + "/hold", dict(reason=reason), guess=guess))
    else:
        merge(result, client.write("DELETE", path + "/hold", guess=guess))


def merge(result, answer):
    """Add the answer to one of several changes to the result of all."""
    said = outcome(answer)
    result.setdefault("warnings", []).extend(said.pop("warnings"))
    result["changed"] = result["changed"] or said.pop("changed", False)
    diff = said.pop("diff", None)
    if diff:
        whole = result.setdefault("diff", dict(before={}, after={}))
        whole["before"].update(diff["before"] or {})
        whole["after"].update(diff["after"] or {})
    if answer.value:
        result["checkpoint"] = answer.value


def present(module, client):
    params = module.params
    if params["checkpoint_id"] is not None:
        return change(module, client)
    plan = segment(params["plan"])
    pin = params["pin"] is not False
    body = dict(given(params, "consistency"), pin=pin)
    if params["max_age"] is not None:
        body["max_age_s"] = seconds(params["max_age"], "max_age")
    if params["hold"]:
        body["hold"] = params["hold"]
    guess = None
    if client.check_mode or client.diff:
        client.get(f"/plans/{plan}")  # an unknown plan is an error in check mode too
        before = labelled(client, params)
        after = dict(described(before[0]) if before else {}, label=params["label"], pinned=pin)
        if params["hold"] and not after.get("hold"):
            after["hold"] = params["hold"]
        shown = described(before[0]) if before else {}
        guess = Answer(shown != after, {"checkpoint": before[0] if before else None}, before=shown, after=after)
    answer = client.write(
        "PUT",
        f"/plans/{plan}/checkpoints/{segment(params['label'])}",
        body,
        guess=guess,
        idempotency_key=params["idempotency_key"],
    )
    result = conclude(module, client, answer)
    checkpoint = (answer.value or {}).get("checkpoint")
    if checkpoint is None and result["run"] and params["wait"]:
        made = labelled(client, params)
        checkpoint = made[0] if made else None
    result["checkpoint"] = checkpoint
    if params["hold"] == "":
        for one in labelled(client, params):
            if one.get("hold"):
                hold(client, result, f"/checkpoints/{segment(one['checkpoint_id'])}", one, "")
    return result


def absent(module, client):
    params = module.params
    result = dict(changed=False, checkpoint=None, run=None)
    for one in chosen(client, params):
        path = f"/checkpoints/{segment(one['checkpoint_id'])}"
        guess = Answer(True, None, before=described(one), after={})
        if one.get("pinned") and params["pin"] is False:
            client.write("PATCH", path, {"pin": False}, guess=guess)
        answer = client.write("DELETE", path, guess=guess)
        # A checkpoint that was there and is gone is a change, whatever the answer says of it.
        answer.changed = True
        result.update(outcome(answer))
    return result


def is_verified(checkpoint, max_age_s):
    """Say whether a checkpoint was read back, and found whole, no longer than max_age_s ago (None: ever)."""
    if checkpoint.get("integrity") != "verified":
        return False
    if max_age_s is None:
        return True
    times = [one["at"] for one in checkpoint.get("addenda") or () if one.get("verdict") == "verified"]
    newest = datetime.datetime.fromisoformat(max(times).replace("Z", "+00:00"))
    return (datetime.datetime.now(datetime.timezone.utc) - newest).total_seconds() < max_age_s


def verified(module, client):
    params = module.params
    max_age_s = None if params["max_age"] is None else seconds(params["max_age"], "max_age")
    found = chosen(client, params)
    if not found and params["checkpoint_id"] is None:
        client.get(f"/plans/{segment(params['plan'])}")  # a plan that is unknown is the first thing to say
        raise BadParameter(
            f"plan {params['plan']!r} has no checkpoint with label {params['label']!r}",
            field="label",
            hint="Make it first: state present.",
        )
    result = dict(changed=False, checkpoint=found[0], run=None, runs=[])
    for one in found:
        if is_verified(one, max_age_s):
            continue
        before = dict(described(one), integrity=one.get("integrity"))
        guess = Answer(True, None, before=before, after=dict(before, integrity="verified"))
        path = f"/checkpoints/{segment(one['checkpoint_id'])}"
        answer = client.write("POST", path + ":scrub", {}, guess=guess)
        answer.changed = True
        result.update(conclude(module, client, answer))
        result["runs"].extend([result["run"]] if result["run"] else [])
    if result["changed"] and not client.check_mode:
        result["checkpoint"] = chosen(client, params)[0]
    return result


def ensure(module, client):
    return dict(present=present, absent=absent, verified=verified)[module.params["state"]](module, client)


def main():
    run(
        ensure,
        dict(
            wait_argument_spec(),
            plan=dict(type="str"),
            label=dict(type="str"),
            checkpoint_id=dict(type="str"),
            note=dict(type="str"),
            hold=dict(type="str"),
            cleared=dict(type="str"),
            pin=dict(type="bool"),
            consistency=dict(type="str", choices=["machine", "group", "application"]),
            max_age=dict(type="str"),
            state=dict(type="str", choices=["present", "absent", "verified"], default="present"),
        ),
        mutually_exclusive=[("checkpoint_id", "plan"), ("checkpoint_id", "consistency")],
        required_one_of=[("checkpoint_id", "plan")],
        required_by=dict(plan=["label"], note=["checkpoint_id"], cleared=["checkpoint_id"]),
    )


if __name__ == "__main__":
    main()
