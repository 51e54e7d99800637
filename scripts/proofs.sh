#!/usr/bin/env bash
# The proofs of the data plane at any size: proofs.sh sim|sim-bugs|crash|fuzz. Settings come as variables: N, SEED, ...
source "$(dirname "$0")/common.sh"
export PYTHONPATH=$ROOT/engine/tests PYTHONHASHSEED=0 HYPOTHESIS_STORAGE_DIRECTORY=$CACHE/hypothesis
python=$VENV/bin/python
case ${1:-} in
    sim)
        "$python" -m sim.run --count "${N:-100000}" --seed "${SEED:-1}" ${VERBOSE:+--verbose}
        ;;
    sim-bugs)
        # N: measure how often each is found in so many schedules, and write it down.
        "$python" -m sim.hunt --all --measure "${N:-0}" ${BUG:+"$BUG"}
        ;;
    crash)
        STATES=${N:-1000000} "$VENV/bin/pytest" -n 2 --basetemp "$CACHE/crash" engine/tests/crash
        rm -rf "$CACHE/crash"
        ;;
    fuzz)
        "$python" -m fuzz.frames --seconds "${SECONDS_EACH:-600}" --seed "${SEED:-1}"
        ;;
    *)
        die "say which: sim, sim-bugs, crash or fuzz"
        ;;
esac
