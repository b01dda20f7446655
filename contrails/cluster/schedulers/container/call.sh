#!/bin/sh
# Stands in a container for a command of the scheduler, such as squeue: enter.sh runs the command on the node.
calls=${0%/bin/*}
number=0
until mkdir "$calls/$$.$number" 2>/dev/null; do
    if [ ! -d "$calls" ]; then
        echo "${0##*/}: the job that serves calls of the scheduler from the container has ended" >&2
        exit 1
    fi
    number=$((number + 1))
done
call=$calls/$$.$number
printf '%s\0' "$$" "$PWD" "${0##*/}" "$@" >"$call/words"
cat /proc/self/environ >"$call/environ"
mkfifo "$call/in"
exec 3<&0 </dev/null
cat <&3 >"$call/in" 2>/dev/null 3<&- &
feeder=$!
exec 3<&-
echo "${call##*/}" 2>/dev/null >"$calls/requests" &
writer=$!
read -r loop <"$calls/loop"
until [ -e "$call/code" ]; do
    if [ ! -d "/proc/$loop" ] && [ ! -e "$call/code" ]; then
        echo "${0##*/}: the shell that serves calls of the scheduler from the container was ended" >&2
        exec 2>/dev/null
        kill "$feeder" "$writer"
        exit 1
    fi
    sleep 0.05 >/dev/null 2>&1
done
cat "$call/out"
cat "$call/err" >&2
read -r code <"$call/code"
exec 2>/dev/null
kill "$feeder" "$writer"
rm -rf "$call"
exit "$code"
