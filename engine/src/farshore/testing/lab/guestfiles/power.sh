#!/bin/sh
# Waits for the ACPI power button, then goes down in order. Respawned by init.
# shellcheck source=common.sh
. /etc/common.sh
for event in /sys/class/input/event*; do
    if grep -q 'Power Button' "$event/device/name" 2>/dev/null; then
        head -c 24 "/dev/input/${event##*/}" >/dev/null && exec /etc/stop.sh
    fi
done
sleep 1
