#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Fetch the evidence of a run
version_added: 0.1.0
description:
  - Writes the report of a run that has ended to a file on the host of the module.
  - As V(json) it is signed and chained to the report before it. V(html) is a page for people, V(junit) is for CI systems;
    the signed report holds the digests of both.
  - C(farshore evidence verify FILE --key KEY) checks the files anywhere, without a control plane. Keep the files of one run
    in one folder under one name, such as C(run-8a21.json), C(run-8a21.html) and C(run-8a21.xml), and it checks all of them.
author:
  - Farshore contributors (@farshore)
options:
  run_id:
    description:
      - Identifier of the run. It has to have ended.
    type: str
    required: true
  dest:
    description:
      - File to write, or a folder that exists; in a folder the file is called as the run, with a suffix for O(format).
    type: path
    required: true
  format:
    description:
      - What to fetch.
    type: str
    choices: [json, html, junit]
    default: json
  mode:
    description:
      - Permissions of the file, such as V('0640').
    type: str
    default: '0644'
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The digests of what was there and of what is there now.
seealso:
  - module: farshore.dr.run_info
  - module: farshore.dr.drill
  - module: farshore.dr.failover
"""

EXAMPLES = r"""
- name: Keep the evidence of a drill in all forms
  farshore.dr.report:
    run_id: "{{ drill.run.run_id }}"
    dest: /srv/evidence
    format: "{{ item }}"
  loop: [json, html, junit]

- name: Show a drill in the CI system
  farshore.dr.report:
    run_id: "{{ drill.run.run_id }}"
    dest: build/junit/drill.xml
    format: junit
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: /srv/evidence/run-8a21.json
sha256:
  description: Digest of the file's bytes.
  returned: success
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
position:
  description: The report's place in the chain of its control plane.
  returned: when O(format=json)
  type: int
  sample: 12
digest:
  description: What the next report refers to. Written down elsewhere it proves later that none was left out.
  returned: when O(format=json)
  type: str
  sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
"""

import hashlib
import json
import os

from ansible_collections.farshore.dr.plugins.module_utils.client import segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import BadAnswer, BadParameter
from ansible_collections.farshore.dr.plugins.module_utils.module import run

SUFFIXES = {"json": "", "html": ".html", "junit": ".xml"}


def place(params):
    """Return the file to write."""
    dest = params["dest"]
    if os.path.isdir(dest):
        name = os.path.basename(params["run_id"])
        if name != params["run_id"] or name.startswith("."):
            raise BadParameter(f"{params['run_id']!r} is no run", field="run_id")
        return os.path.join(dest, name + (SUFFIXES[params["format"]] or ".json"))
    folder = os.path.dirname(dest) or "."
    if not os.path.isdir(folder):
        raise BadParameter(f"there is no folder {folder}", field="dest", hint="Make it first.")
    return dest


def read(path):
    """Return what is in the file, None where there is none."""
    try:
        with open(path, "rb") as source:
            return source.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadParameter(f"{path} cannot be read: {error.strerror}", field="dest") from error


def write(module, path, content):
    """Put ``content`` into the file, whole or not at all."""
    part = os.path.join(module.tmpdir, "report")
    try:
        with open(part, "wb") as out:
            out.write(content)
    except OSError as error:
        raise BadParameter(f"{part} cannot be written: {error.strerror}", field="dest") from error
    module.atomic_move(part, path)


def ensure(module, client):
    params = module.params
    path = place(params)
    content = client.raw(f"/runs/{segment(params['run_id'])}/report{SUFFIXES[params['format']]}")
    result = dict(path=path, sha256=hashlib.sha256(content).hexdigest())
    if params["format"] == "json":
        try:
            document = json.loads(content.decode("utf-8"))
            result.update(position=document["position"], digest=document["digest"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadAnswer("the control plane did not answer with a report") from error
    before = read(path)
    changed = before != content
    old = hashlib.sha256(before).hexdigest() if before is not None else ""
    result["diff"] = dict(before=dict(path=path, sha256=old), after=dict(path=path, sha256=result["sha256"]))
    if changed and not module.check_mode:
        write(module, path, content)
    if not module.check_mode or not changed:
        changed = module.set_mode_if_different(path, params["mode"], changed)
    return dict(result, changed=changed)


def main():
    run(
        ensure,
        dict(
            run_id=dict(type="str", required=True),
            dest=dict(type="path", required=True),
            format=dict(type="str", choices=["json", "html", "junit"], default="json"),
            mode=dict(type="str", default="0644"),
        ),
    )


if __name__ == "__main__":
    main()
