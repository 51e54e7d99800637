#!/usr/bin/env bash
# Remove what was built; virtual environments and downloads stay.
source "$(dirname "$0")/common.sh"

[[ -e $CACHE/demo ]] && die "the demo is there; first: make demo-down"
rm -rf build engine/build engine/src/*.egg-info tests/output .mypy_cache .ruff_cache .import_linter_cache .hypothesis
for folder in "$CACHE"/*; do
    case ${folder##*/} in
        pip | wheelhouse | lab | ansible-test-*) ;; # downloads, and what took minutes to make
        *) rm -rf "$folder" ;;
    esac
done
rm -f "$VENV/.stamp" "$SECOND/.stamp"
find . -path ./.venv -prune -o -path ./.venv-312 -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
