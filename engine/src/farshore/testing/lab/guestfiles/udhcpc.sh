#!/bin/sh
# Called by udhcpc: $1 is the event, the lease is in the environment.
export PATH=/bin
# shellcheck disable=SC2154  # set by udhcpc
case "$1" in
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    [ -n "$router" ] && ip route replace default via "${router%% *}" dev "$interface"
    ;;
deconfig) ip link set "$interface" up ;;
esac
exit 0
