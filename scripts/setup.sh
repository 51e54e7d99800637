#!/usr/bin/env bash
# Install what a profile needs, and only what is missing.
#   setup.sh venv     Python tools and the engine (.venv)
#   setup.sh lab      that, and the hypervisor packages (root)
#   setup.sh test     that, and the test tools, others' collections, and .venv-312 where a Python 3.12 is found
#   setup.sh bench    Python tools, and what is measured and compared with (root)
source "$(dirname "$0")/common.sh"

profile=${1:-lab}
exec 9>"$CACHE/setup.lock"
flock 9

packages() { # the Debian packages of the profiles given, by bindep.txt
    local wanted
    wanted=$(printf '%s|' "$@")
    sed -nE "s/^([a-z0-9.+-]+) \[platform:dpkg (${wanted%|})\]\$/\1/p" bindep.txt
}

apt() { # apt PROFILE...: install what is missing; `optional` as the first word makes that a wish
    local optional=false missing=() package
    [[ $1 == optional ]] && { optional=true; shift; }
    if ! command -v dpkg-query >/dev/null; then
        note "this is no Debian: see bindep.txt for what has to be there ($*)"
        return
    fi
    local installed
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p')
    for package in $(packages "$@"); do
        grep -qxF "$package" <<<"$installed" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        $optional && { note "not installed, since you are not root: ${missing[*]}"; return; }
        die "these packages are missing: ${missing[*]}. As root: apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get update -q || note "the package lists could not be fetched; trying those that are here"
        apt-get install -q -y --no-install-recommends "${missing[@]}"
    } >"$CACHE/apt.log" 2>&1 || {
        tail -n 20 "$CACHE/apt.log" >&2
        $optional && { note "could not install ${missing[*]}"; return; }
        die "apt-get could not install ${missing[*]} (offline?); the log is .cache/apt.log"
    }
}

venv() { # venv DIR PYTHON FILES-THAT-DECIDE -- PIP-ARGUMENTS...
    local dir=$1 python=$2 files=() stamp
    shift 2
    while [[ $1 != -- ]]; do files+=("$1"); shift; done
    shift
    stamp="$(printf '%s ' "$@") $(cat "${files[@]}" | sha256sum)"
    [[ -x $dir/bin/python && -f $dir/.stamp && $(<"$dir/.stamp") == "$stamp" ]] && return 0
    say "installing the Python tools into ${dir#"$ROOT"/} with $python (a few minutes the first time)"
    [[ -x $dir/bin/python ]] || "$python" -m venv "$dir" || die "$python -m venv failed: on Debian install python3-venv"
    "$dir/bin/python" -m pip install -q "$@" >"$CACHE/pip.log" 2>&1 || {
        tail -n 20 "$CACHE/pip.log" >&2
        die "pip could not install into ${dir#"$ROOT"/} (offline?); the log is .cache/pip.log"
    }
    printf '%s' "$stamp" >"$dir/.stamp"
}

bench() { # what is compared with; what is missing is left out of the measurements, which say so
    local fresh=false
    # A machine that had no SSH server gets none that runs: the measurements start one of their own where they need it.
    if [[ -d /run/systemd/system && ! -e /usr/sbin/sshd && $EUID == 0 ]]; then
        fresh=true
        systemctl mask -q --runtime ssh.service ssh.socket
    fi
    apt optional bench
    if $fresh; then
        systemctl disable -q ssh.service 2>/dev/null || true
        systemctl unmask -q --runtime ssh.service ssh.socket
    fi
    [[ -c /dev/net/tun ]] || note "no /dev/net/tun here: no wide-area links, only loopback"
}

wanem() { # the wide-area link between two network namespaces
    local source=tests/tools/wanem/wanem.c made=$CACHE/wanem/wanem
    [[ $made -nt $source ]] && return 0
    command -v gcc >/dev/null || { note "no gcc: wanem is not compiled, and there are no wide-area links"; return 0; }
    mkdir -p "$CACHE/wanem"
    gcc -O2 -Wall -Wextra -Werror -o "$made.new" "$source" -lm || die "wanem could not be compiled"
    mv "$made.new" "$made"
}

# What playbooks of ours use of others' collections, for tests: taken out of the package that carries them all.
collections() {
    local wanted='ansible>=12.3,<13' names=(amazon/aws community/aws) place=$CACHE/collections/ansible_collections work
    [[ -f $place/.stamp && $(<"$place/.stamp") == "$wanted ${names[*]}" ]] && return 0
    say "fetching the collections ${names[*]} for tests"
    work=$(mktemp -d "$CACHE/collections.XXXXXX")
    "$VENV/bin/python" -m pip download -q --no-deps --only-binary :all: -d "$work" "$wanted" >"$CACHE/pip.log" 2>&1 || {
        rm -rf "$work"
        tail -n 20 "$CACHE/pip.log" >&2
        die "pip could not fetch $wanted (offline?); the log is .cache/pip.log"
    }
    "$VENV/bin/python" - "$work" "${names[@]}" <<'EOF'
import pathlib, sys, zipfile
work = pathlib.Path(sys.argv[1])
wanted = tuple(f"ansible_collections/{name}/" for name in sys.argv[2:])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    wheel.extractall(work, [name for name in wheel.namelist() if name.startswith(wanted)])
EOF
    local name
    for name in "${names[@]}"; do
        rm -rf "${place:?}/$name"
        mkdir -p "$(dirname "$place/$name")"
        mv "$work/ansible_collections/$name" "$place/$name"
    done
    rm -rf "$work"
    printf '%s' "$wanted ${names[*]}" >"$place/.stamp"
}

if [[ $profile == venv ]]; then
    apt optional dev kvm
else
    apt dev kvm
fi
python=$(find_python 3.11 3.12 3.13) || die "no Python 3.11, 3.12 or 3.13 with venv was found"
extras=aws,recovery,dev
pkg-config --exists libvirt 2>/dev/null && extras=kvm,aws,recovery,dev
venv "$VENV" "$python" engine/pyproject.toml requirements-ansible.txt requirements-dev.txt -- \
    -e "engine[$extras]" -r requirements-dev.txt

[[ $profile == lab || $profile == test ]] && apt lab
[[ $profile == bench ]] && bench
[[ $profile == bench || $profile == test ]] && wanem
if [[ $profile == test ]]; then
    apt test
    collections
    if python312=$(find_python 3.12); then
        venv "$SECOND" "$python312" requirements-ansible.txt -- -r requirements-ansible.txt
    elif [[ ${CI:-} == true ]]; then
        die "no Python 3.12 was found, and a run of CI has to try the second stack (ansible-core 2.21) too"
    else
        note "no Python 3.12 was found: the second stack (ansible-core 2.21) is not tried"
    fi
fi
link_collection
exit 0
