#!/bin/sh
# The database's own load: one row a second. The other roles write nothing by themselves. Respawned by init.
# shellcheck source=common.sh
. /etc/common.sh
[ "$role" = db ] && [ "$(cat /run/disks)" = ok ] || exec sleep 86400
while [ ! -f /run/stopping ]; do
    lock && {
        append tick >/dev/null
        rm -f /run/table-late
        unlock
    }
    sleep 1
done
exec sleep 86400
