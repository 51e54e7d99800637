#!/bin/sh
# All pages of the application; which one is the name that we were called by.
# shellcheck source=common.sh
. /etc/common.sh

reply() { # reply STATUS TYPE: the head; the body follows on standard output
    printf 'HTTP/1.0 %s\r\nContent-Type: %s\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n' "$1" "$2"
}
refuse() {
    reply "$1" application/json
    printf '{"error":"%s"}\n' "$2"
    exit 0
}
parameter() { # parameter NAME: from the query or a form body, only the letters that need no decoding
    query=$QUERY_STRING
    [ "$REQUEST_METHOD" = POST ] && [ "${CONTENT_LENGTH:-0}" -gt 0 ] 2>/dev/null && query=$(head -c "$CONTENT_LENGTH")
    printf '%s' "$query" | tr '&' '\n' | sed -n "s/^$1=//p" | head -n 1
}
valid() { case "$1" in '' | *[!A-Za-z0-9._:-]*) return 1 ;; esac; [ ${#1} -le 64 ]; }
need_database() { [ "$role" = db ] || refuse '404 Not Found' "this guest is $role, ask the database"; }
# timeout and not wget's own -T: that one crashes in Debian 12's static BusyBox.
ask_database() { timeout 5 wget -q -O - "http://$(database_address):$PORT/cgi-bin/$1" 2>/dev/null; }

database_status() {
    # Under the lock, so that the row that is being written is seen whole or not at all.
    lock || return 1
    checked=$(check_journal)
    head=$(sed 's/^0*//' "$HEAD")
    set -- $checked
    journal=$1 rows=$2 last=$3
    table=$(check_table "$last")
    digest=$(sha256sum "$JOURNAL" | cut -c1-16)
    unlock
    across=$(cat /run/across)
    [ "${head:-0}" = "$last" ] || across="differ:head=$head,last=$last"
    state=ok
    [ "$journal" = ok ] && [ "$across" = ok ] && [ "$table" = ok ] && [ "$(cat /run/disks)" = ok ] || state=bad
    printf '{"role":"db","status":"%s","journal":"%s","across_disks":"%s","table":"%s","rows":%s,"last_sequence":%s,"digest":"%s","boots":%s,"previous_stop":"%s","address":"%s"}\n' \
        "$state" "$journal" "$across" "$table" "$rows" "$last" "$digest" "$(cat /run/boots)" "$(cat /run/previous-stop)" "$(address)"
}

case "${0##*/}" in
status)
    if [ "$role" = db ]; then
        reply '200 OK' application/json
        database_status
        exit 0
    fi
    answer=$(ask_database status)
    case "$answer" in
    *'"status":"ok"'*) state=ok code='200 OK' ;;
    *) state=bad code='503 Service Unavailable' ;;
    esac
    reply "$code" application/json
    printf '{"role":"web","status":"%s","boots":%s,"previous_stop":"%s","address":"%s","database_address":"%s","database":%s}\n' \
        "$state" "$(cat /run/boots)" "$(cat /run/previous-stop)" "$(address)" "$(database_address)" "${answer:-null}"
    ;;
insert)
    need_database
    value=$(parameter value)
    valid "$value" || refuse '400 Bad Request' 'value: 1 to 64 of A-Z a-z 0-9 . _ : -'
    [ -f /run/stopping ] && refuse '503 Service Unavailable' 'stopping'
    lock || refuse '503 Service Unavailable' 'busy'
    sequence=$(append "$value")
    done=$?
    unlock
    [ $done = 0 ] && [ -n "$sequence" ] || refuse '500 Internal Server Error' 'the row could not be written'
    reply '200 OK' application/json
    printf '{"sequence":%s,"value":"%s"}\n' "$sequence" "$value"
    ;;
rows)
    if [ "$role" != db ]; then
        reply '200 OK' text/plain
        ask_database "rows?$QUERY_STRING"
        exit 0
    fi
    from=$(parameter from)
    case "$from" in '' | *[!0-9]*) from=1 ;; esac
    reply '200 OK' text/plain
    awk -v from="$from" '$1 >= from { print $1, $2, $4 }' "$JOURNAL"
    ;;
find)
    if [ "$role" != db ]; then
        reply '200 OK' application/json
        ask_database "find?$QUERY_STRING"
        exit 0
    fi
    value=$(parameter value)
    valid "$value" || refuse '400 Bad Request' 'value: 1 to 64 of A-Z a-z 0-9 . _ : -'
    reply '200 OK' application/json
    awk -v v="$value" '$4 == v { n++; s = $1 } END { printf "{\"value\":\"%s\",\"rows\":%d,\"sequence\":%d}\n", v, n, s }' "$JOURNAL"
    ;;
digest)
    need_database
    lock || refuse '503 Service Unavailable' 'busy'
    all=$(cat "$JOURNAL" "$TABLE" | sha256sum | cut -d' ' -f1)
    unlock
    reply '200 OK' application/json
    printf '{"sha256":"%s"}\n' "$all"
    ;;
index.cgi)
    reply '200 OK' 'text/html; charset=utf-8'
    if [ "$role" = db ]; then status=$(database_status); rows=$(tail -n 10 "$JOURNAL"); else status=$(ask_database status); rows=$(ask_database rows | tail -n 10); fi
    printf '<!doctype html><title>farshore-lab %s</title><style>body{font:16px system-ui;margin:3rem;max-width:48rem}pre{background:#f3f4f6;padding:1rem;overflow:auto}</style>' "$role"
    printf '<h1>Orders</h1><p>Served by <b>%s</b> at %s, data from %s.</p><h2>Database</h2><pre>%s</pre><h2>Newest rows</h2><pre>%s</pre>\n' \
        "$role" "$(address)" "$(database_address)" "${status:-the database does not answer}" "$rows"
    ;;
*) refuse '404 Not Found' 'no such page' ;;
esac
