#!/usr/bin/env bash
# The quick gate: format, lint, types, layers, unit and property tests.
source "$(dirname "$0")/common.sh"
export RUFF_CACHE_DIR=$CACHE/ruff HYPOTHESIS_STORAGE_DIRECTORY=$CACHE/hypothesis
bin=$VENV/bin
link_collection

step "ruff format" "$bin/ruff" format --check -q --output-format concise .
step "ruff check" "$bin/ruff" check -q --output-format concise .
step "mypy" "$bin/mypy" --cache-dir "$CACHE/mypy" --no-error-summary
step "import-linter" bash -c "'$bin/lint-imports' --cache-dir '$CACHE/import-linter' >'$CACHE/layers.log' || { cat '$CACHE/layers.log'; exit 1; }"

suites=()
for suite in engine/tests/unit engine/tests/property; do
    [[ -d $suite ]] && suites+=("$suite")
done
((${#suites[@]})) && step "engine: unit and property tests" "$bin/pytest" -n 2 -m "not lab and not e2e" "${suites[@]}"
step "modules: unit tests on ansible-core 2.19" "$bin/pytest" -n 2 tests/unit
verdict
