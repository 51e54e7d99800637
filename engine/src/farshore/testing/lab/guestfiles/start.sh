#!/bin/sh
# Runs once, from BusyBox init: drivers, disks, network, service, marker line.
/bin/mount -t proc proc /proc
/bin/mount -t sysfs sysfs /sys
/bin/mount -t devtmpfs devtmpfs /dev
/bin/mount -t tmpfs tmpfs /run
# shellcheck source=common.sh
. /etc/common.sh

# Each after what it needs: virtio_ring before virtio, failover before virtio_net.
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console \
    failover net_failover virtio_net button evdev; do
    insmod "/lib/modules/$module.ko" 2>/dev/null
done

ip link set lo up

wait_block() {
    tries=0
    until [ -b "$1" ]; do
        tries=$((tries + 1))
        [ $tries -gt "$2" ] && return 1
        usleep 50000
    done
}

disks=ok
wait_block /dev/vda2 200 && mount -t ext4 -o errors=panic /dev/vda2 "$SYSTEM" || disks=no-system-disk
# A fixed address where the system disk has one, as ifupdown writes it; else what DHCP gives.
fixed=$(awk '$1 == "address" { print $2; exit }' "$SYSTEM/etc/network/interfaces" 2>/dev/null)
gateway=$(awk '$1 == "gateway" { print $2; exit }' "$SYSTEM/etc/network/interfaces" 2>/dev/null)
if ip link set eth0 up 2>/dev/null; then
    if [ -n "$fixed" ]; then
        ip addr add "$fixed" dev eth0
        [ -n "$gateway" ] && ip route add default via "$gateway"
    else
        udhcpc -i eth0 -b -t 20 -T 1 -A 2 -S -s /etc/udhcpc.sh >/dev/null 2>&1 &
    fi
fi

# shellcheck disable=SC1090
[ -r "$CONF" ] && . "$CONF"
hostname "farshore-lab-${role:-unknown}"

stop=clean
[ -f "$SYSTEM/var/running" ] && stop=unclean
boots=$(($(cat "$SYSTEM/var/boots" 2>/dev/null || echo 0) + 1))
echo "$boots" >"$SYSTEM/var/boots"
: >"$SYSTEM/var/running"
sync
echo "$boots" >/run/boots
echo "$stop" >/run/previous-stop

across=none
sequence=0
if [ "$role" = db ]; then
    wait_block /dev/vdb 60 && mount -t ext4 -o errors=panic /dev/vdb "$DATA" || disks=no-data-disk
    if [ $disks = ok ]; then
        : >>"$JOURNAL"
        last=$(tail -n 1 "$JOURNAL" | cut -d' ' -f1)
        sequence=${last:-0}
        head=$(sed 's/^0*//' "$HEAD" 2>/dev/null)
        head=${head:-0}
        case $((head - sequence)) in
        0) across=ok ;;
        1) across=ok; printf '%010d\n' "$sequence" | dd of="$HEAD" conv=notrunc,fsync 2>/dev/null ;; # a row that was never answered
        *) across="differ:head=$head,last=$sequence" ;;
        esac
        # The page write comes after the journal's: after an unclean stop it may be missing for the newest row alone.
        [ $stop = unclean ] && : >/run/table-late
    fi
fi
echo "$across" >/run/across
echo "$disks" >/run/disks

mkdir -p /srv/cgi-bin
for name in status insert rows find digest index.cgi; do ln -sf /etc/cgi.sh "/srv/cgi-bin/$name"; done
httpd -p "$PORT" -h /srv

say "farshore-lab guest: role=${role:-unknown} last_sequence=$sequence boots=$boots previous_stop=$stop across_disks=$across"

# The service answers on whatever address comes; the marker waits for one, but not for ever (a port without DHCP).
tries=0
until [ -n "$(address)" ] || [ ! -e /sys/class/net/eth0 ] || [ $tries -gt 100 ]; do
    tries=$((tries + 1))
    usleep 100000
done
say "MARKER role=${role:-unknown} disks=$disks address=$(address) last_sequence=$sequence uptime_s=$(cut -d' ' -f1 /proc/uptime)"
