# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Runs: how a verb ends that may have started one, and what is new about one since it was last looked at."""

from __future__ import annotations

from ansible_collections.farshore.dr.plugins.module_utils.module import outcome, waiter
from ansible_collections.farshore.dr.plugins.module_utils.waiting import ENDED

_MIB = 1 << 20
# States in which a run waits for somebody.
WAITING = ("waiting-approval", "paused")


def conclude(module, client, answer, **values):
    """Return the result of a verb; ``answer.value`` is ``{"run": Run or None, ...}``. Waits where the task says so."""
    run = None
    if not client.check_mode:
        run = client.located((answer.value or {}).get("run"))
        if run and module.params["wait"]:
            run = waiter(module, client).until_ended(run["run_id"])
    return outcome(answer, run=run, **values)


def news(run, told):
    """Return (sentences, told): what changed in ``run`` since ``told``, a list of marks that an earlier call returned."""
    known = set(told)
    sentences = []
    marks = list(told)

    def tell(mark, sentence):
        if mark not in known:
            known.add(mark)
            marks.append(mark)
            sentences.append(sentence)

    for index, step in enumerate(run.get("steps") or ()):
        state = step.get("state")
        if state in (None, "pending"):
            continue
        who = " ".join(str(step[key]) for key in ("name", "machine") if step.get(key))
        text = f"{who}: {state}"
        if step.get("seconds") is not None and state != "running":
            text += f" after {step['seconds']:.1f} s"
        if step.get("detail"):
            text += f" ({step['detail']})"
        tell(f"{index}/{who}/{state}", text)
    state = run.get("state")
    rests = [mark for mark in marks if mark.startswith("rest/")]
    last = rests[-1].split("/", 2)[2] if rests else ""
    # It may wait for somebody more than once: each time is told, and that it goes on.
    now = f"{state}: {run['next']}" if run.get("next") else "goes on" if last and state not in ENDED else ""
    if now and now != last:
        tell(f"rest/{len(rests)}/{now}", now)
    if state in ENDED:
        tell(f"run/{state}", f"{run.get('kind')} {run.get('run_id')}: {state}")
    return sentences, marks


def progress(run):
    """Return how far ``run`` is as a short sentence, empty where it does not say."""
    if run.get("state") in WAITING and run.get("next"):
        return str(run["next"])
    found = run.get("progress") or {}
    parts = []
    if found.get("total_bytes"):
        parts.append(f"{(found.get('done_bytes') or 0) / _MIB:.1f} of {found['total_bytes'] / _MIB:.1f} MiB")
    if found.get("wire_bytes_per_s") is not None:
        parts.append(f"{found['wire_bytes_per_s'] / _MIB:.1f} MiB/s on the wire")
    if found.get("note"):
        parts.append(str(found["note"]))
    return ", ".join(parts)
