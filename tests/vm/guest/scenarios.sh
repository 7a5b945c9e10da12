#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the scenarios named in $SCENARIOS one after the other, reports each on descriptor 9, then the kernel's log.
# The kernel's log gets a line where each begins, so that the host knows what it comes from.

# run NAME: with a limit; when it strikes, the kernel says where everybody waits
run() {
    echo "VM-BEGIN $1" >/dev/kmsg
    echo "VM-BEGIN $1" >&9
    begin=$(cut -d' ' -f1 /proc/uptime)
    sh -c '. /vm/lib.sh; . "$0"' "/vm/scenarios/$1.sh" >&9 2>&1 &
    scenario=$!
    (
        sleep "${LIMIT_S:-300}"
        echo "ended after ${LIMIT_S:-300} s" >&9
        for what in m w t; do echo "$what" >/proc/sysrq-trigger; done  # memory, who waits, everybody
        kill -KILL "$scenario"
    ) &
    watchdog=$!
    wait "$scenario"
    status=$?
    kill "$watchdog" 2>/dev/null
    [ "$status" -ne 137 ] || sh /vm/lib.sh >&9 2>&1  # cleans up in its stead
    echo "VM-END $1 $status $begin $(cut -d' ' -f1 /proc/uptime)" >&9
}

for name in $SCENARIOS; do
    run "$name"
done
echo "VM-BEGIN -" >/dev/kmsg
{
    echo "VM-KERNEL-LOG"
    dmesg -r
    echo "VM-DONE"
} >&9
