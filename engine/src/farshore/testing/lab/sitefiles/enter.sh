#!/bin/sh
# Runs a command inside this site's mount, network and pid namespaces: enter COMMAND [ARGUMENT...]
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")

if [ "$(readlink /proc/self/ns/net)" = "$(cat "$here/netns" 2>/dev/null)" ]; then
    exec "$@" # inside already
fi

# The start time tells our process from a later one that was given the same number.
runs() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- "$2" ${stat##*) }
    shift
    [ "${20}" = "$started" ]
}
if ! read -r pid started <"$here/init.pid" 2>/dev/null || ! runs "$pid" "$started"; then
    echo "$here: this site does not run; start it with: python -m farshore.testing.lab up" >&2
    exit 69
fi

# nsenter waits outside and forwards no signal: setpriv lets the command end with it. What the command itself
# starts in the background lives on and is reaped by the site's process 1. The folder that we are called in may not
# exist inside (/run is another there).
folder=$PWD
cd /
exec nsenter --target "$pid" --mount --net --pid -- setpriv --pdeathsig TERM -- \
    sh -c 'cd -- "$1" 2>/dev/null; shift; exec "$@"' sh "$folder" "$@"
