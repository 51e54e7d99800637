"""The roles control_plane and replication_node: a second run changes nothing, secrets stay secret."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from stand import FARSHORE, ROOT, SERVICES, STACKS


def recap(output):
    """Return host → changed and failed counts from the recap."""
    found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", output, re.MULTILINE)
    return {host: (int(changed), int(unreachable) + int(failed)) for host, changed, unreachable, failed in found}


def test_the_first_run_enrolled_both_nodes(services):
    assert recap(services.first.stdout)["north"][0] > 0


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_a_second_run_changes_nothing(services, stack):
    again = services.with_stack(stack).play_text(SERVICES)
    assert recap(again.stdout) == {"localhost": (0, 0), "north": (0, 0), "south": (0, 0)}


def test_check_mode_changes_nothing_and_finds_nothing_to_change(services):
    looked = services.play_text(SERVICES, "--check", "--diff")
    counts = recap(looked.stdout)
    assert counts["north"] == counts["south"] == (0, 0)


def test_no_secret_is_said_however_loudly_one_asks(services):
    said = services.play_text(SERVICES, "-vvvv")
    said = said.stdout + said.stderr
    assert services.variables["farshore_token"] not in said
    assert not re.search(r"fsn_\w+_\w+", said)
    assert not re.search(r"fsn_\w+_\w+", services.first.stdout + services.first.stderr)


def test_settings_and_state_are_for_the_owner_alone(services):
    for site in ("north", "south"):
        assert (services.folder / site / "etc" / "node.yml").stat().st_mode & 0o777 == 0o600
        assert (services.folder / site / "state").stat().st_mode & 0o777 == 0o700


def test_the_units_are_sound(services, tmp_path):
    """The templates of both roles, as systemd reads them."""
    play = """
    - hosts: localhost
      gather_facts: false
      vars:
        engine_executable: /bin/true
        ansible_managed: made by a role
        replication_node_name: alpha-1
        replication_node_site: alpha
        replication_node_roles: [replication, recovery]
        replication_node_user: root
        replication_node_hook_user: farshore-hooks
        replication_node_hook_work_dir: /var/lib/farshore-hooks
        replication_node_state_dir: /var/lib/farshore/node
        replication_node_config_path: /etc/farshore/node.yml
        replication_node_write_paths: [/srv/more]
        replication_node_platform: {type: kvm, uri: "qemu:///system", pool: /srv/pool, scratch: /srv/scratch}
        control_plane_home: /var/lib/farshore
        control_plane_host: 127.0.0.1
        control_plane_port: 8443
        control_plane_node_port: 8444
      tasks:
        - ansible.builtin.template:
            src: "{{ item }}"
            dest: "{{ out }}/{{ item | basename | splitext | first }}"
            mode: "0644"
          loop:
            - "{{ repo }}/roles/replication_node/templates/farshore-node.service.j2"
            - "{{ repo }}/roles/control_plane/templates/farshore-control.service.j2"
    """
    services.play_text(play, out=str(tmp_path), repo=str(ROOT))
    for name in ("farshore-node.service", "farshore-control.service"):
        unit = tmp_path / name
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert name not in done.stderr, done.stderr
        assert done.returncode == 0, done.stderr
    assert (
        "ReadWritePaths=/var/lib/farshore/node /srv/more /var/lib/farshore-hooks /srv/pool /srv/scratch\n"
        in (tmp_path / "farshore-node.service").read_text()
    )


def test_a_node_that_nobody_reaches_listens_nowhere_and_still_has_an_address(services, tmp_path):
    play = """
    - hosts: localhost
      gather_facts: false
      vars_files: ["{{ repo }}/roles/replication_node/defaults/main.yml"]
      vars:
        replication_node_site: alpha
        replication_node_control_url: https://control.example.net:8444
        replication_node_platform: {type: file, root: /srv/alpha}
      tasks:
        - ansible.builtin.template:
            src: "{{ repo }}/roles/replication_node/templates/node.yml.j2"
            dest: "{{ out }}/{{ item | replace(':', '-') }}.yml"
            mode: "0600"
          vars: {replication_node_data_listen: "{{ item }}"}
          loop: [none, "127.0.0.1:9105"]
        - ansible.builtin.debug:
            msg: "it is reached at <{{ replication_node_data_address }}>"
          vars: {replication_node_data_listen: "{{ item }}"}
          loop: [none, "127.0.0.1:9105"]
    """
    done = services.play_text(play, out=str(tmp_path), repo=str(ROOT))
    assert re.findall(r"it is reached at <(.+?)>", done.stdout) == ["localhost:9101", "localhost:9105"]
    assert 'data_listen: "none"\n' in (tmp_path / "none.yml").read_text()
    assert 'data_listen: "127.0.0.1:9105"\n' in (tmp_path / "127.0.0.1-9105.yml").read_text()


def test_packages_that_are_there_are_not_asked_for_again(services, tmp_path):
    """The tasks that make a node ready to look into guests, with and without something that is missing."""
    play = """
    - hosts: localhost
      gather_facts: false
      tasks:
        - ansible.builtin.include_tasks: "{{ repo }}/roles/replication_node/tasks/guests.yml"
          vars: {replication_node_guest_packages: [bash, coreutils]}
        - ansible.builtin.include_tasks: "{{ repo }}/roles/replication_node/tasks/guests.yml"
          vars: {replication_node_guest_packages: []}
    """
    done = services.play_text(play, repo=str(ROOT))
    assert recap(done.stdout)["localhost"] == (0, 0)
    # Nothing was handed to the package manager.
    assert done.stdout.count("skipping: [localhost]") == 2


def test_an_engine_from_the_wheelhouse_needs_no_index(services, tmp_path):
    """The role engine on this machine as the host: collected once, installed without an index, idempotent."""
    play = """
    - hosts: localhost
      gather_facts: false
      roles:
        - role: farshore.dr.engine
          engine_prefix: "{{ out }}/opt"
          engine_cache: "{{ repo }}/.cache/wheelhouse"
          engine_build_python: "{{ python }}"
          engine_python: "{{ python }}"
      post_tasks:
        - ansible.builtin.command: {argv: ["{{ engine_executable }}", version]}
          changed_when: false
          register: said
        - ansible.builtin.assert: {that: said.stdout is search('farshore')}
    """
    python = str(FARSHORE.parent / "python")
    first = services.play_text(play, out=str(tmp_path), repo=str(ROOT), python=python)
    assert recap(first.stdout)["localhost"][0] > 0
    again = services.play_text(play, out=str(tmp_path), repo=str(ROOT), python=python)
    assert recap(again.stdout)["localhost"] == (0, 0)
    assert Path(tmp_path, "opt", "current", "venv", "bin", "farshore").exists()
