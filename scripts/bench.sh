#!/usr/bin/env bash
# Measure the data path beside other tools; build/bench.json and the plots of docs/benchmarks. By the environment:
#   ONLY     pieces, with commas (all of them if empty); those measured before with the same sizes are kept beside them
#   SIZE     full, standard (half as much) or quick
#   ROUNDS   how often each is measured, by the size if empty
#   SCRATCH  folder for images and copies, .cache/bench if empty
source "$(dirname "$0")/common.sh"
((EUID == 0)) || die "the measurements make network namespaces, which needs root"
PYTHONPATH=engine exec "$VENV/bin/python" -m benchmarks bench --only "${ONLY:-}" --size "${SIZE:-full}" \
    --scratch "${SCRATCH:-$CACHE/bench}" ${ROUNDS:+--rounds "$ROUNDS"}
