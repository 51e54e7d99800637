#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_link
short_description: Describe the way of the data between two sites
version_added: 0.1.0
description:
  - Says which of two sites waits for the data connections, and how much of the way between them may be used at what time.
  - A link is described for one direction, the one in which the data goes. Without a description the nodes of the source
    site wait for connections, and there is no limit.
  - The limit is what all replication cycles over the link take together, whichever nodes they run on. A change reaches
    cycles that run within seconds; which side listens holds for the cycles that begin afterwards.
author:
  - Farshore contributors (@farshore)
options:
  source_site:
    description:
      - Name of the site that the data comes from.
    type: str
    required: true
  target_site:
    description:
      - Name of the site that the data goes to.
    type: str
    required: true
  data_listen:
    description:
      - Which of the two waits for connections. With V(target), nodes of the source site are reached by nobody.
    type: str
    choices: [source, target]
    default: source
  bandwidth:
    description:
      - How much may be sent, and when. Without it there is no limit.
    type: dict
    suboptions:
      limit:
        description:
          - The rate that holds where no entry of O(bandwidth.calendar) does, such as V(200 Mbit/s) or V(25 MiB/s).
          - V(unlimited), or nothing, for no limit.
        type: str
      timezone:
        description:
          - Whose clock O(bandwidth.calendar) means, such as V(Europe/Berlin).
        type: str
        default: UTC
      calendar:
        description:
          - Parts of the week with rates of their own. The first entry that covers a time holds.
        type: list
        elements: dict
        default: []
        suboptions:
          days:
            description:
              - Days on which it begins. Without them, every day.
            type: list
            elements: str
            choices: [mon, tue, wed, thu, fri, sat, sun]
          from:
            description:
              - Time of day at which it begins, such as V(08:00).
            type: str
            required: true
          to:
            description:
              - Time of day at which it ends. A time before O(bandwidth.calendar[].from) is on the next day.
            type: str
            required: true
          limit:
            description:
              - The rate that holds then, or V(unlimited).
            type: str
            required: true
  state:
    description:
      - Whether the link is to be described.
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
  - module: farshore.dr.protection_plan
"""

EXAMPLES = r"""
- name: Leave the way to the office during the day
  farshore.dr.site_link:
    source_site: alpha
    target_site: beta
    bandwidth:
      limit: 500 Mbit/s
      timezone: Europe/Berlin
      calendar:
        - days: [mon, tue, wed, thu, fri]
          from: "08:00"
          to: "18:00"
          limit: 50 Mbit/s

- name: Let the nodes of alpha dial, since nobody reaches them from outside
  farshore.dr.site_link:
    source_site: alpha
    target_site: beta
    data_listen: target

- name: No limit and no special way any more
  farshore.dr.site_link:
    source_site: alpha
    target_site: beta
    state: absent
"""

RETURN = r"""
link:
  description: The link as it is now; empty where it is not described, and what it would be in check mode.
  returned: success
  type: dict
  contains:
    source_site:
      description: Name of the site that the data comes from.
      type: str
    target_site:
      description: Name of the site that the data goes to.
      type: str
    data_listen:
      description: Which of the two waits for connections.
      type: str
    bandwidth:
      description: The limit, the calendar and its time zone; rates are bytes per second, none is without limit.
      type: dict
    limit_now:
      description: Bytes per second that are allowed now; none is without limit.
      type: int
    limit_until:
      description: When this changes; none if it never does.
      type: str
    shares:
      description: Nodes whose cycles use the link now, with what each may take of it.
      type: list
      elements: dict
  sample:
    source_site: alpha
    target_site: beta
    data_listen: source
    bandwidth:
      limit: 62500000
      calendar: []
      timezone: UTC
    limit_now: 62500000
    limit_until:
    shares: []
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import NotFound
from ansible_collections.farshore.dr.plugins.module_utils.module import outcome, run


def time_of_day(text):
    """Return ``text`` as it was meant: YAML makes a number of minutes of 18:00 without quotes."""
    return int(text) if text.isdigit() else text


def wanted(params):
    bandwidth = params["bandwidth"] or dict(limit=None, timezone="UTC", calendar=[])
    body = dict(timezone=bandwidth["timezone"], calendar=[])
    if bandwidth["limit"] is not None:
        body["limit"] = bandwidth["limit"]
    for hours in bandwidth["calendar"]:
        entry = {"from": time_of_day(hours["from"]), "to": time_of_day(hours["to"]), "limit": hours["limit"]}
        if hours["days"]:
            entry["days"] = hours["days"]
        body["calendar"].append(entry)
    return dict(data_listen=params["data_listen"], bandwidth=body)


def ensure(module, client):
    params = module.params
    path = f"/site-links/{segment(params['source_site'])}/{segment(params['target_site'])}"
    if params["state"] == "present":
        answer = client.write("PUT", path, wanted(params), preview=path + ":preview")
        return outcome(answer, link=answer.value or {})
    try:
        before = client.get(path)
    except NotFound:
        return dict(changed=False, link={})
    answer = client.write("DELETE", path, guess=Answer(True, None, before=before, after={}))
    return outcome(answer, link={})


def main():
    hours = {
        "days": dict(type="list", elements="str", choices=["mon", "tue", "wed", "thu", "fri", "sat", "sun"]),
        "from": dict(type="str", required=True),
        "to": dict(type="str", required=True),
        "limit": dict(type="str", required=True),
    }
    run(
        ensure,
        dict(
            source_site=dict(type="str", required=True),
            target_site=dict(type="str", required=True),
            data_listen=dict(type="str", choices=["source", "target"], default="source"),
            bandwidth=dict(
                type="dict",
                options=dict(
                    limit=dict(type="str"),
                    timezone=dict(type="str", default="UTC"),
                    calendar=dict(type="list", elements="dict", default=[], options=hours),
                ),
            ),
            state=dict(type="str", choices=["present", "absent"], default="present"),
        ),
    )


if __name__ == "__main__":
    main()
