#!/usr/bin/env bash
# Measure the data path beside other tools; build/bench.json and the plots of docs/benchmarks. By the environment:
#   SIZE     full or quick
#   ROUNDS   how often each is measured, by the size if empty
#   SCRATCH  folder for images and copies, .cache/bench if empty
source "$(dirname "$0")/common.sh"
((EUID == 0)) || die "the measurements make network namespaces, which needs root"
PYTHONPATH=engine exec "$VENV/bin/python" -m benchmarks bench --size "${SIZE:-full}" --scratch "${SCRATCH:-$CACHE/bench}" ${ROUNDS:+--rounds "$ROUNDS"}
