#!/bin/sh
# Shared by all scripts of the laboratory's guest. POSIX sh as BusyBox has it.
# System disk (vda2) on /system, data disk (vdb, database only) on /data; what must not outlive a boot is in /run.
# shellcheck disable=SC2034  # used by the scripts that read this file
export PATH=/bin
SYSTEM=/system
DATA=/data
CONF=$SYSTEM/etc/farshore-lab.conf      # role=db|web, optionally database=ADDRESS
HEAD=$SYSTEM/var/head                   # the sequence that is about to be written, on the *other* disk than the journal
JOURNAL=$DATA/journal.txt               # one row a line: sequence seconds chain value
TABLE=$DATA/table.dat                   # 4 KiB pages; row n rewrites page (n * 7919) mod PAGES
PAGES=16384
PORT=8080
role=
database=
# shellcheck disable=SC1090
[ -r "$CONF" ] && . "$CONF"

address() { ip -4 -o addr show dev eth0 2>/dev/null | awk '{ split($4, a, "/"); print a[1]; exit }'; }

# Where the database is: by convention the host part .11 of our own network, so that the same pair of guests
# finds each other on whatever network it is recovered into.
database_address() {
    if [ -n "$database" ]; then echo "$database"; else address | awk -F. '{ print $1 "." $2 "." $3 ".11" }'; fi
}

# The chain makes every row depend on all rows before it. Values are hashed once each, most are "tick".
AWK_CHAIN='
function weight(value,   i, sum) {
    if (value in known) return known[value]
    sum = 0
    for (i = 1; i <= length(value); i++) sum = (sum * 131 + index(ALPHABET, substr(value, i, 1))) % 999983
    return known[value] = sum
}
function link(previous, sequence, seconds, value) {
    return (previous * 31 + sequence * 17 + seconds % 100000 + weight(value)) % 999983
}
BEGIN { ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-" }
'

lock() {
    tries=0
    until mkdir /run/lock.d 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -gt 500 ] && return 1
        usleep 20000
    done
}
unlock() { rmdir /run/lock.d; }

# append VALUE: one row, durable on both disks when it returns; prints its sequence. Call it with the lock held.
append() {
    last=$(tail -n 1 "$JOURNAL")
    set -- "$1" $last
    value=$1 sequence=$((${2:-0} + 1)) chain=${4:-0} now=$(date +%s)
    chain=$(awk -v p="$chain" -v s="$sequence" -v t="$now" -v v="$value" "$AWK_CHAIN"'BEGIN { print link(p, s, t, v) }')
    # Order matters: the system disk first, then the data disk. A copy of both disks at one instant shows
    # head - last in {0, 1}; anything else means that the disks are of different instants.
    printf '%010d\n' "$sequence" | dd of="$HEAD" conv=notrunc,fsync 2>/dev/null || return 1
    echo "$sequence $now $chain $value" | dd of="$JOURNAL" oflag=append conv=notrunc,fsync 2>/dev/null || return 1
    echo "row $sequence at $now: $value" | dd of="$TABLE" bs=4096 seek=$((sequence * 7919 % PAGES)) conv=notrunc,sync,fsync 2>/dev/null || return 1
    echo "$sequence"
}

# check_journal: prints "ok ROWS LAST" or "broken ROWS LAST": gapless sequence and an unbroken chain.
check_journal() {
    awk "$AWK_CHAIN"'
    { if ($1 != NR || NF != 4 || $3 != link(chain, $1, $2, $4)) bad = 1; chain = $3; last = $1 }
    END { print (bad ? "broken" : "ok"), NR, last + 0 }' "$JOURNAL"
}

# check_table LAST: the page of the newest row must hold it; right after an unclean stop it may not have been reached.
check_table() {
    [ "$1" = 0 ] && { echo ok; return; }
    page=$(dd if="$TABLE" bs=4096 skip=$(($1 * 7919 % PAGES)) count=1 2>/dev/null | head -c 64 | tr -d '\000' | head -n 1)
    case "$page" in
    "row $1 at "*) echo ok ;;
    *) if [ -f /run/table-late ]; then echo ok; else echo stale; fi ;;
    esac
}

say() {
    echo "$*" >/dev/ttyS0
    echo "$*" >/dev/tty0 2>/dev/null
}
