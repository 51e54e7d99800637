# Copyright: Contributors to the Farshore project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of modules that can start a run and wait for it."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  wait:
    description:
      - Whether the module ends when the run has ended, and fails where the run does.
      - With V(false) it ends as soon as the run is started; wait with M(farshore.dr.run_info).
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds until the module waits no longer and fails. The run goes on all the same.
      - A control plane that does not answer meanwhile is waited for, up to two minutes, also beyond this.
    type: int
    default: 3600
  wait_interval:
    description:
      - Seconds between the first two looks at the run; the pauses grow up to 15 seconds.
    type: float
    default: 1.0
  on_cancel:
    description:
      - What becomes of the run where the job is interrupted while the module waits.
      - V(leave) lets it go on, V(cancel) tells it to stop.
    type: str
    choices: [leave, cancel]
    default: leave
  idempotency_key:
    description:
      - The control plane carries out one request per key, and answers a second one with what the first one did.
      - Set it to something that is the same when a job is repeated, such as V(awx-{{ awx_job_id }}); without it each task has its own.
    type: str
"""
