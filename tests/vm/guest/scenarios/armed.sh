# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The armed rule, by the system calls of each thread that serves while a program swaps in and out: those of its frontend's
# I/O, waiting, and nothing else. No memory is mapped or unmapped, no file opened.
need strace strace
case $FRONTEND in
    ublk) io="io_uring_enter" ;;
    nbd) io="recvmsg sendmsg sched_setscheduler poll" ;;
    loop) io="read writev epoll_wait" ;;
esac
# Events and waiting: for the other threads, and for a lock of the store.
allowed="$io ppoll read write sched_yield futex restart_syscall"

pages=${ARMED_PAGES:-300}

up a 48M
worker=$(status_of a worker_pid)
new_group vm-armed 8M
start_hog armed vm-armed 24 busy
swapped() { [ "$(vmstat_of pswpout)" -ge "$out" ] && [ "$(vmstat_of pswpin)" -ge "$in" ]; }
strace -ff -qq -e signal=none -o /tmp/strace -p "$worker" &
tracer=$!
is_traced() { ! grep -q "^TracerPid:.0$" /proc/"$worker"/task/*/status; }
wait_until 60 is_traced || fail "strace does not attach"
out=$(($(vmstat_of pswpout) + pages)) in=$(($(vmstat_of pswpin) + pages))
wait_until 200 swapped || fail "fewer than $pages pages swapped"
echo "at least $pages pages swapped out, and $pages in, meanwhile"
kill -INT "$tracer"
wait "$tracer"

for task in /proc/"$worker"/task/*; do
    thread=${task##*/}
    name=$(cat "$task/comm")
    # The control thread and the monitor's may do what they like: nobody waits for them.
    [ "$thread" != "$worker" ] && [ "$name" != vs-monitor ] || continue
    [ -s "/tmp/strace.$thread" ] || { echo "$name: no system call"; continue; }
    sed -n 's/^\([a-z0-9_]*\)(.*/\1/p' "/tmp/strace.$thread" | sort | uniq -c | sort -rn >/tmp/calls.out
    while read -r count call; do
        echo "$name: $count $call"
        case " $allowed " in
            *" $call "*) ;;
            *) echo "$name: $call is not allowed" >>/tmp/bad.out ;;
        esac
        case $name in vs-flusher | vs-merger | vs-mover) ;; *) echo "$count" >>/tmp/served.out ;; esac
    done </tmp/calls.out
done
[ ! -s /tmp/bad.out ] || fail "$(cat /tmp/bad.out)"
expect "$(awk '{ sum += $1 } END { print sum + 0 }' /tmp/served.out)" -gt 100
grep -q flusher /proc/"$worker"/task/*/comm || fail "no flusher"
end_hog armed
down a
