#!/usr/bin/env bash
# The gates of the collection, each by name or all of them: gates.sh [sanity] [lint] [changelog] [docs] [galaxy] [units]
source "$(dirname "$0")/common.sh"
link_collection

# Where the collection lies as Ansible's own tools want it: a git work tree of its own, of what git knows or would add.
LAYOUT=$CACHE/ansible/ansible_collections/farshore/dr
lay_out() {
    mkdir -p "$LAYOUT"
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [[ -e $file || -L $file ]] && printf '%s\0' "$file"; done >"$CACHE/files"
    rsync -a --from0 --files-from="$CACHE/files" . "$LAYOUT.new/"
    rsync -a --delete --exclude .git --exclude tests/output "$LAYOUT.new/" "$LAYOUT/"
    rm -rf "$LAYOUT.new" "$LAYOUT/tests/output"
    [[ -d $LAYOUT/.git ]] || git -C "$LAYOUT" init -q
    git -C "$LAYOUT" add -A
}

# ansible-test clears the environment but for HOME, and keeps its virtual environments there.
sanity() { # sanity VENV
    local bin=$1/bin version home
    version=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    home=$CACHE/ansible-test-$version
    mkdir -p "$home/.ansible/test/cache"
    local pip
    pip=$(sed -nE "s/^ +pip='([0-9.]+)',$/\1/p" "$1"/lib/python*/site-packages/ansible_test/_internal/python_requirements.py)
    cp scripts/get_pip.py "$home/.ansible/test/cache/get_pip_${pip//./_}.py"
    # The engine runs on no managed host: it is held to ruff and mypy, which ask for more, and to Python 3.11.
    (cd "$LAYOUT" && HOME=$home PATH=$bin:$(dirname "$("$bin/python" -c 'import sys; print(sys._base_executable)')"):$PATH \
        "$bin/ansible-test" sanity --local --python "$version" --color no --exclude engine/)
}

lint() {
    shellcheck -x -P scripts scripts/*.sh .ci/run || return 1
    # Others' collections that playbooks use are beside the link to this one; the layout comes first.
    (cd "$LAYOUT" && ANSIBLE_COLLECTIONS_PATH=$CACHE/ansible:$CACHE/collections PATH=$VENV/bin:$PATH \
        "$VENV/bin/ansible-lint" --offline --profile production -q) && "$VENV/bin/yamllint" --strict .
}

changelog() {
    (cd "$LAYOUT" && "$VENV/bin/antsibull-changelog" lint)
}

docs() {
    (cd "$LAYOUT" && ANSIBLE_COLLECTIONS_PATH=$CACHE/ansible PATH=$VENV/bin:$PATH \
        "$VENV/bin/antsibull-docs" lint-collection-docs --plugin-docs --validate-collection-refs=all .)
}

galaxy() { # build, install into an empty place, read every document, parse every playbook by its full name
    local out=$CACHE/galaxy place=$CACHE/galaxy/fresh bin name names=()
    rm -rf "$out" && mkdir -p "$place"
    (cd "$LAYOUT" && "$VENV/bin/ansible-galaxy" collection build -v --force --output-path "$out" >"$out/build.log" 2>&1) || {
        cat "$out/build.log"
        return 1
    }
    local tarball
    tarball=$(echo "$out"/farshore-dr-*.tar.gz)
    if tar -tzf "$tarball" | grep -E '(^|/)(\.venv|\.cache|__pycache__|\.git)/|\.pyc$|^tests/|^engine/tests/'; then
        note "the tarball holds what it should not"
        return 1
    fi
    for bin in "$VENV/bin" "$SECOND/bin"; do
        [[ -x $bin/ansible-galaxy ]] || continue
        rm -rf "$place"
        ANSIBLE_COLLECTIONS_PATH=$place "$bin/ansible-galaxy" collection install --offline -p "$place" "$tarball" >"$out/install.log" 2>&1 || {
            cat "$out/install.log"
            return 1
        }
        names=()
        for name in plugins/modules/*.py; do
            names+=("farshore.dr.$(basename "$name" .py)")
        done
        (cd "$out" && ANSIBLE_COLLECTIONS_PATH=$place "$bin/ansible-doc" -t module "${names[@]}" >/dev/null) || return 1
        (cd "$out" && ANSIBLE_COLLECTIONS_PATH=$place "$bin/ansible-doc" -t role -l >/dev/null) || return 1
        for name in playbooks/*.yml; do
            (cd "$out" && ANSIBLE_COLLECTIONS_PATH=$place "$bin/ansible-playbook" --syntax-check \
                "farshore.dr.$(basename "$name" .yml)" >"$out/syntax.log" 2>&1) || {
                cat "$out/syntax.log"
                return 1
            }
        done
    done
    note "$(basename "$tarball"), $(du -h "$tarball" | cut -f1), $(tar -tzf "$tarball" | grep -vc '/$') files"
}

wanted=("$@")
((${#wanted[@]})) || wanted=(lint changelog docs galaxy units sanity)
lay_out
for gate in "${wanted[@]}"; do
    case $gate in
        sanity)
            for stack in "$VENV" "$SECOND"; do
                [[ -x $stack/bin/ansible-test ]] || continue
                step "ansible-test sanity, ansible-core $("$stack/bin/python" -c 'import ansible; print(ansible.__version__)')" sanity "$stack"
            done
            ;;
        lint) step "shellcheck, ansible-lint (profile production), yamllint" lint ;;
        changelog) step "antsibull-changelog lint" changelog ;;
        docs) step "antsibull-docs lint-collection-docs" docs ;;
        galaxy) step "galaxy: build, install, ansible-doc, playbooks by full name" galaxy ;;
        units)
            [[ -x $SECOND/bin/pytest ]] || continue
            step "modules: unit tests on ansible-core 2.21" "$SECOND/bin/pytest" -n 2 tests/unit
            ;;
        *) die "no such gate: $gate" ;;
    esac
done
verdict
