#!/usr/bin/env bash
# Measure what the data path is held to and put it into build/figures.json. By the environment:
#   ONLY     ids, with commas (all of them if empty); "demo" prints the figures of the last demo instead
#   SIZE     full or quick
#   ROUNDS   how often each is measured, by the size if empty
#   SCRATCH  folder for images and copies, .cache/bench if empty
source "$(dirname "$0")/common.sh"
if [[ ${ONLY:-} == demo ]]; then
    [[ -f build/demo.json ]] || die "build/demo.json is not there; first: make demo"
    exec "$VENV/bin/python" playbooks/files/figures.py build/demo.json
fi
((EUID == 0)) || die "the measurements make network namespaces, which needs root"
# What stands for AWS is among the tests' doubles.
PYTHONPATH=engine:engine/tests exec "$VENV/bin/python" -m benchmarks figures --only "${ONLY:-}" --size "${SIZE:-full}" \
    --scratch "${SCRATCH:-$CACHE/bench}" ${ROUNDS:+--rounds "$ROUNDS"}
