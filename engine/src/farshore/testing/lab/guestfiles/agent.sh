#!/bin/sh
# A small guest agent on virtio-serial: what of QEMU's protocol the laboratory needs, one line of JSON a command
# (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html). Respawned by init.
# A freeze ends by itself after FREEZE_LIMIT seconds, as on Windows: nobody may hold the guest for ever.
# shellcheck source=common.sh
. /etc/common.sh
device=
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] && device=/dev/${port##*/}
done
[ -c "$device" ] || exec sleep 86400

answer() { printf '%s\n' "$1" >&3; }
field() { printf '%s' "$line" | sed -n "s/.*\"$1\" *: *\"\\{0,1\\}\\([^\",}]*\\).*/\\1/p"; }

freeze() {
    count=0
    : >/run/frozen
    for place in $(awk '$3 == "ext4" { print $2 }' /proc/mounts); do
        fsfreeze --freeze "$place" && count=$((count + 1))
    done
    (
        sleep "${FREEZE_LIMIT:-60}"
        thaw
    ) >/dev/null 2>&1 3>&- &
    echo $! >/run/frozen
    echo $count
}

thaw() {
    count=0
    for place in $(awk '$3 == "ext4" { print $2 }' /proc/mounts); do
        fsfreeze --unfreeze "$place" 2>/dev/null && count=$((count + 1))
    done
    rm -f /run/frozen
    echo $count
}

# Arguments are plain words here: no quotes or commas in them.
execute() {
    path=$(field path)
    arguments=$(printf '%s' "$line" | sed -n 's/.*"arg" *: *\[\([^]]*\)\].*/\1/p' | tr -d '"' | tr ',' ' ')
    # shellcheck disable=SC2086
    (
        $path $arguments >"/run/exec.$1.out" 2>&1
        echo $? >"/run/exec.$1.code"
    ) 3>&- &
}

# The port stays open as QEMU's own agent keeps it; it reads as ended while nobody is at its other end.
exec 3<>"$device"
number=0
while :; do
    IFS= read -r line <&3 || {
        sleep 1
        continue
    }
    case "$(field execute)" in
    guest-sync | guest-sync-delimited) answer "{\"return\": $(field id)}" ;;
    guest-ping) answer '{"return": {}}' ;;
    guest-get-host-name) answer "{\"return\": {\"host-name\": \"$(hostname)\"}}" ;;
    guest-fsfreeze-status)
        if [ -e /run/frozen ]; then answer '{"return": "frozen"}'; else answer '{"return": "thawed"}'; fi
        ;;
    guest-fsfreeze-freeze) answer "{\"return\": $(freeze)}" ;;
    guest-fsfreeze-thaw)
        [ -e /run/frozen ] && kill "$(cat /run/frozen)" 2>/dev/null
        answer "{\"return\": $(thaw)}"
        ;;
    guest-exec)
        number=$((number + 1))
        execute $number
        answer "{\"return\": {\"pid\": $number}}"
        ;;
    guest-exec-status)
        pid=$(field pid)
        if [ -e "/run/exec.$pid.code" ]; then
            answer "{\"return\": {\"exited\": true, \"exitcode\": $(cat "/run/exec.$pid.code"), \"out-data\": \"$(base64 <"/run/exec.$pid.out" | tr -d '\n')\"}}"
        else
            answer '{"return": {"exited": false}}'
        fi
        ;;
    '') ;;
    *) answer '{"error": {"class": "CommandNotFound", "desc": "the laboratory'"'"'s agent does not know this command"}}' ;;
    esac
done
