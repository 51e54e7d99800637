"""How playbooks are run against services that the collection's own roles have set up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / ".cache" / "collections"
FARSHORE = ROOT / ".venv" / "bin" / "farshore"
#: Each supported line of ansible-core that is installed here.
STACKS = {
    name: ROOT / folder / "bin"
    for name, folder in (("core-2.19", ".venv"), ("core-2.21", ".venv-312"))
    if (ROOT / folder / "bin" / "ansible-playbook").exists()
}
MIB = 1 << 20


class Ansible:
    """Runs playbooks against the services, with one line of ansible-core."""

    def __init__(self, folder, stack="core-2.19", variables=None):
        self.folder = folder
        self.stack = stack
        self.variables = variables or {}
        self.collections = COLLECTIONS

    def play(self, playbook, *options, check=True, **variables):
        """Run ``playbook`` (a path or a full name) and return its process."""
        command = [STACKS[self.stack] / "ansible-playbook", "-i", self.folder / "hosts.yml", playbook, *options]
        # By file: arguments are seen by others, and shown by -vvvv.
        extra = self.folder / "variables.json"
        extra.write_text(json.dumps({**self.variables, **variables}), encoding="utf-8")
        command += ["-e", f"@{extra}"]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("FARSHORE_", "ANSIBLE_"))
        }
        environment.update(
            ANSIBLE_COLLECTIONS_PATH=str(self.collections),
            ANSIBLE_ROLES_PATH=str(ROOT / "tests" / "integration" / "targets"),
            ANSIBLE_HOME=str(self.folder / "ansible-home"),
            ANSIBLE_LOCALHOST_WARNING="false",
            ANSIBLE_NOCOLOR="true",
            ANSIBLE_PIPELINING="true",
            LC_ALL="C.UTF-8",
        )
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{playbook} ended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}")
        return done

    def play_text(self, text, *options, check=True, **variables):
        """Run a playbook that is given as YAML text."""
        path = self.folder / "play.yml"
        path.write_text(text, encoding="utf-8")
        return self.play(path, *options, check=check, **variables)


SERVICES = r"""
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Run the control plane
      ansible.builtin.include_role:
        name: farshore.dr.control_plane
      vars:
        control_plane_home: "{{ home }}"
        control_plane_port: "{{ api_port }}"
        control_plane_node_port: "{{ node_port }}"
        control_plane_install_source: existing
        control_plane_executable: "{{ executable }}"
        control_plane_service_manager: process

    - name: Read its token
      ansible.builtin.set_fact:
        token: "{{ lookup('ansible.builtin.file', home ~ '/farshore.env') | regex_search(pattern, '\\1') | first }}"
      vars:
        pattern: FARSHORE_TOKEN=(.+)
      no_log: true

    - name: Register the sites
      farshore.dr.site:
        name: "{{ item }}"
        platform: file
        url: "{{ control_plane_url }}"
        token: "{{ token }}"
        ca_path: "{{ home }}/ca.pem"
      loop: [north, south]

- hosts: nodes
  gather_facts: false
  tasks:
    - name: Run the node
      ansible.builtin.include_role:
        name: farshore.dr.replication_node
      vars:
        replication_node_site: "{{ inventory_hostname }}"
        replication_node_control_url: "{{ hostvars.localhost.control_plane_node_url }}"
        replication_node_data_listen: "127.0.0.1:{{ data_port }}"
        replication_node_data_address: "127.0.0.1:{{ data_port }}"
        replication_node_platform: {type: file, root: "{{ folder }}/{{ inventory_hostname }}"}
        replication_node_config_path: "{{ folder }}/{{ inventory_hostname }}/etc/node.yml"
        replication_node_state_dir: "{{ folder }}/{{ inventory_hostname }}/state"
        replication_node_install_source: existing
        replication_node_executable: "{{ executable }}"
        replication_node_service_manager: process
        replication_node_state: "{{ node_state | default('present') }}"
        replication_node_api_url: "{{ hostvars.localhost.control_plane_url }}"
        replication_node_api_token: "{{ hostvars.localhost.token }}"
        replication_node_api_ca_path: "{{ home }}/ca.pem"

- hosts: localhost
  gather_facts: false
  tasks:
    - name: Stop the control plane
      ansible.builtin.include_role:
        name: farshore.dr.control_plane
      vars:
        control_plane_state: absent
        control_plane_home: "{{ home }}"
        control_plane_remove_home: true
        control_plane_executable: "{{ executable }}"
        control_plane_service_manager: process
      when: node_state | default('present') == 'absent'
"""


class Services(Ansible):
    """What runs: the control plane at ``url``, the nodes of the sites north and south, machines in their folders."""

    def machine(self, site, name, **disks):
        from farshore.platforms.file.machine import FileMachine

        return FileMachine.create(self.folder / site, name, disks)

    def with_stack(self, stack):
        return Ansible(self.folder, stack, self.variables)
