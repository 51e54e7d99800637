# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module supports, said in one form."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can say what it would change without changing anything.
  diff_mode:
    description: Shows what differs, before and after.
  action_group:
    description: Takes the options of C(module_defaults) that are set for this group.
    support: full
    membership: [farshore.dr.dr]
"""

    # Modules that only read.
    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Can say what it would change without changing anything.
    support: full
    details: Never changes anything.
  diff_mode:
    description: Shows what differs, before and after.
    support: none
    details: Never changes anything.
  action_group:
    description: Takes the options of C(module_defaults) that are set for this group.
    support: full
    membership: [farshore.dr.dr]
"""
