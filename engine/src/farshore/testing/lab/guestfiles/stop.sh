#!/bin/sh
# An orderly stop: no new rows, the last one finished, everything on disk, file systems closed, power off.
# shellcheck source=common.sh
. /etc/common.sh
say "farshore-lab guest: power button, stopping"
: >/run/stopping
killall httpd 2>/dev/null
lock    # the row that is being written ends first; nobody gets the lock after us
rm -f "$SYSTEM/var/running"
say "STOPPED role=$role last_sequence=$(tail -n 1 "$JOURNAL" 2>/dev/null | cut -d' ' -f1)"
sync
umount "$DATA" 2>/dev/null || mount -o remount,ro "$DATA" 2>/dev/null
umount "$SYSTEM" 2>/dev/null || mount -o remount,ro "$SYSTEM" 2>/dev/null
poweroff -f
