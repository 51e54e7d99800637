#!/usr/bin/env bash
# Everything: the quick gate, then contracts, crash points, security, real hypervisors, Ansible's gates, the journey.
source "$(dirname "$0")/common.sh"
export RUFF_CACHE_DIR=$CACHE/ruff HYPOTHESIS_STORAGE_DIRECTORY=$CACHE/hypothesis
((EUID == 0)) || die "the tests start private hypervisors, which needs root"
bin=$VENV/bin
link_collection
unset FARSHORE_URL FARSHORE_TOKEN FARSHORE_CA_PATH FARSHORE_VALIDATE_CERTS FARSHORE_HOME

# A short place for the tests' folders: the names of Unix sockets in them have 107 bytes at most.
base=$(mktemp -d /tmp/fs.XXXXXX)
trap 'rm -rf "$base"' EXIT

step "check" scripts/check.sh
suite() { # suite NAME WORKERS FOLDER...: those folders that hold tests
    local name=$1 workers=$2 folder found=()
    shift 2
    for folder in "$@"; do
        [[ -n $(find "$folder" -name 'test_*.py' -print -quit 2>/dev/null) ]] && found+=("$folder")
    done
    ((${#found[@]})) || return 0
    step "$name" "$bin/pytest" -n "$workers" --dist loadfile --durations 12 --basetemp "$base/t" "${found[@]}"
}
# Hundreds of processes start, and none of them writes what it has compiled.
"$bin/python" -m compileall -q engine/src
suite "engine: contracts, crash points, bad input, security" 2 engine/tests/contract engine/tests/crash \
    engine/tests/wire engine/tests/fuzz engine/tests/security
suite "engine: simulation of the data plane, and bugs that it has to find" 2 engine/tests/sim
suite "engine: recoveries under kills and faults, before a simulated provider" 2 engine/tests/recovery
# A file stays with one worker: most start processes that its tests share. Laboratories side by side do not collide.
# These wait for processes, guests and each other more than they compute: one worker more than there are processors.
suite "engine: integration and web page" 3 engine/tests/integration engine/tests/ui
step "gates of the collection" scripts/gates.sh
suite "collection: against a real control plane" 0 tests/integration
suite "the journey: protect, rehearse, fail over" 0 tests/e2e
verdict
