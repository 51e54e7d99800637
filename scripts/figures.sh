#!/usr/bin/env bash
# Print the figures of the last demo.
source "$(dirname "$0")/common.sh"
[[ -f build/demo.json ]] || die "build/demo.json is not there; first: make demo"
exec "$VENV/bin/python" playbooks/files/figures.py build/demo.json
