#!/usr/bin/env bash
# Stop the demo and leave nothing of it. Works from any state, also after an interruption.
source "$(dirname "$0")/common.sh"
[[ -x $VENV/bin/ansible-playbook ]] || {
    note "nothing was set up here"
    exit 0
}
((EUID == 0)) || die "the demo's hypervisors belong to root"
link_collection
"$VENV/bin/ansible-playbook" -i inventories/lab playbooks/quickstart_down.yml "$@"
