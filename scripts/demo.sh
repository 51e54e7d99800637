#!/usr/bin/env bash
# Play the quickstart. Ctrl-C leaves a state from which this goes on, and which demo_down.sh removes.
source "$(dirname "$0")/common.sh"
((EUID == 0)) || die "the demo starts private hypervisors, which needs root"
link_collection
unset FARSHORE_URL FARSHORE_TOKEN FARSHORE_CA_PATH FARSHORE_VALIDATE_CERTS

trap 'note "interrupted. \"make demo\" goes on from here, \"make demo-down\" removes what there is."; exit 130' INT
"$VENV/bin/ansible-playbook" -i inventories/lab playbooks/quickstart.yml "$@"
