"""Every target in `targets/`, each against the real control plane, on each supported line of ansible-core."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand import STACKS

TARGETS = sorted(path.name for path in (Path(__file__).parent / "targets").iterdir() if path.is_dir())
PLAY = """
- hosts: localhost
  gather_facts: false
  module_defaults:
    group/farshore.dr.dr:
      url: "{{ farshore_url }}"
      token: "{{ farshore_token }}"
      ca_path: "{{ farshore_ca_path }}"
  roles:
    - TARGET
"""


@pytest.mark.parametrize("stack", sorted(STACKS))
@pytest.mark.parametrize("target", TARGETS)
def test_target(services, target, stack):
    services.with_stack(stack).play_text(PLAY.replace("TARGET", target))
