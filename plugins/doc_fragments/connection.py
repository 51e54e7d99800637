# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that say where the control plane is."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description:
      - Address of the control plane, such as V(https://127.0.0.1:8443).
      - Where it is not set, the environment variable E(FARSHORE_URL) is used; one of them is needed.
    type: str
  token:
    description:
      - Token that says who asks.
      - Where it is not set, the environment variable E(FARSHORE_TOKEN) is used; one of them is needed.
      - The control plane writes the first one into C(farshore.env) of its home.
    type: str
  ca_path:
    description:
      - File on the host of the module with the certificate of the authority that vouches for the control plane.
      - Where it is not set, the environment variable E(FARSHORE_CA_PATH) is used, then the authorities of the system.
    type: path
  validate_certs:
    description:
      - Whether the certificate of the control plane is checked. Leave it so; set O(ca_path) where the authority is not known.
      - Where it is not set, the environment variable E(FARSHORE_VALIDATE_CERTS) is used.
    type: bool
    default: true
  request_timeout:
    description:
      - Seconds until one request is given up.
    type: int
    default: 60
"""
