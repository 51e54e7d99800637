# What the scripts share; sourced, never run. Every path is relative to the repository's root, where it changes to.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
CACHE=$ROOT/.cache
VENV=$ROOT/.venv
SECOND=$ROOT/.venv-312
mkdir -p "$CACHE"

export PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$CACHE/pip}
export ANSIBLE_HOME=$CACHE/ansible-home ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_NOCOWS=1

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }
die() {
    printf '\033[1;31mfailed:\033[0m %s\n' "$*" >&2
    exit 1
}

# Run a step, show its name and time, remember its failure. Use: step NAME COMMAND...; at the end: verdict
FAILED=()
step() {
    local name=$1 begun=$SECONDS
    shift
    say "$name"
    if "$@"; then
        note "ok, $((SECONDS - begun)) s"
    else
        FAILED+=("$name")
        printf '\033[1;31m   %s failed after %s s\033[0m\n' "$name" "$((SECONDS - begun))"
    fi
}

verdict() {
    if ((${#FAILED[@]})); then
        die "$(printf '%s; ' "${FAILED[@]}")see above"
    fi
    say "all right, $SECONDS s"
}

# The first interpreter among MAJOR.MINOR versions that runs and can make virtual environments: find_python 3.11 3.12
find_python() {
    local version candidate
    for version in "$@"; do
        for candidate in "$(command -v "python$version" || true)" "$HOME"/.pyenv/versions/"$version".*/bin/"python$version" \
            "$(command -v python3 || true)"; do
            [[ -x $candidate && $candidate != */shims/* ]] || continue
            if [[ $("$candidate" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$version" ]]; then
                echo "$candidate"
                return 0
            fi
        done
    done
    return 1
}

# What the Ansible commands see: the repository itself as farshore.dr.
link_collection() {
    mkdir -p "$CACHE/collections/ansible_collections/farshore"
    ln -sfn "$ROOT" "$CACHE/collections/ansible_collections/farshore/dr"
    export ANSIBLE_COLLECTIONS_PATH=$CACHE/collections
}
