#!/usr/bin/python

# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: catalog_info
short_description: Read what sites keep of the catalogue, and whether it is right
version_added: 0.1.0
description:
  - Returns the catalogue's generation, and the bundle that each site keeps for when the control plane is lost.
  - With O(check_sites), catalogue, manifests and native points of these sites are compared, and each difference is
    named.
author:
  - Farshore contributors (@farshore)
options:
  check_sites:
    description:
      - Names of the sites to compare. Their nodes have to answer.
      - In check mode nothing is compared.
    type: list
    elements: str
    default: []
  fail:
    description:
      - Whether to fail where a site disagrees, or keeps no current bundle.
    type: bool
    default: false
extends_documentation_fragment:
  - farshore.dr.connection
  - farshore.dr.attributes
  - farshore.dr.attributes.info
seealso:
  - module: farshore.dr.preflight_info
  - module: farshore.dr.checkpoint_info
"""

EXAMPLES = r"""
- name: Read which site keeps which bundle
  farshore.dr.catalog_info:

- name: Prove that catalogue, manifests and native points of a site agree
  farshore.dr.catalog_info:
    check_sites: [beta]
    fail: true
"""

RETURN = r"""
catalog:
  description: The catalogue, and what each site keeps of it.
  returned: success
  type: dict
  sample:
    catalog_id: cat-06h05y6rq68s6s60wq
    generation: 1
    rebuilding: []
    superseded_by: null
    recovery_key_is_here: false
    bundles:
      - site: beta
        number: 12
        written_at: "2026-01-31T12:00:00Z"
        current: true
        error: null
sites:
  description: What the comparison of each of O(check_sites) found.
  returned: success
  type: list
  elements: dict
  sample:
    - site: beta
      agrees: true
      manifests: 14
      foreign: 0
      drafts: 0
      findings: []
"""

from ansible_collections.farshore.dr.plugins.module_utils.client import Answer, segment
from ansible_collections.farshore.dr.plugins.module_utils.errors import ApiError
from ansible_collections.farshore.dr.plugins.module_utils.module import run


def read(module, client):
    params = module.params
    catalog = client.get("/catalog")
    sites = []
    for name in params["check_sites"]:
        path = f"/sites/{segment(name)}:catalog-check"
        found = client.write("POST", path, dict(adopt=False), guess=Answer(False, None)).value
        if found is not None:
            sites.append(found)
    result = dict(changed=False, catalog=catalog, sites=sites)
    wrong = [f"{one['site']}: {one['findings'][0]['message']}" for one in sites if not one["agrees"]]
    wrong += [f"{one['site']}: its bundle is not current" for one in catalog["bundles"] if not one["current"]]
    if params["fail"] and wrong:
        error = ApiError("; ".join(wrong), code="catalog-differs", hint="Look at it: `farshore catalog check`.")
        error.result = result
        raise error
    return result


def main():
    run(
        read,
        dict(
            check_sites=dict(type="list", elements="str", default=[]),
            fail=dict(type="bool", default=False),
        ),
    )


if __name__ == "__main__":
    main()
