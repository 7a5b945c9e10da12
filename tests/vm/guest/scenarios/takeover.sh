# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Workers are killed under a load that checks each page, then under swap; each is followed by another, and no page is wrong. One stands
# still for a while. Then the guardian dies too: I/O fails, nothing hangs, `down` works.
kernel=$(uname -r)
major=${kernel%%.*}
minor=${kernel#*.}
minor=${minor%%[!0-9]*}
case $FRONTEND in
    loop) [ "$major" -gt 6 ] || [ "$minor" -ge 9 ] || skip "over loop it needs Linux 6.9 (FUSE_NOTIFY_RESEND)" ;;
esac

# another_serves NAME PID: a worker, and not that one
another_serves() {
    case $(status_of "$1" state) in serving | armed) ;; *) return 1 ;; esac
    [ "$(status_of "$1" worker_pid)" -ne "$2" ]
}

# is_at_work NAME: its worker has served requests
is_at_work() {
    [ "$(status_of "$1" pages_read)" -gt 20 ]
}

# kill_worker NAME: and wait for the next. Longer than the half minute after which 6.12 notices some deaths.
kill_worker() {
    wait_until 100 is_at_work "$1" || fail "nothing is read of $1"
    pid=$(status_of "$1" worker_pid)
    kill -KILL "$pid" || fail "worker $pid of $1 has died by itself"
    wait_until 100 another_serves "$1" "$pid" || fail "nobody followed worker $pid of $1: $(status_of "$1" problem)"
}

kills=${KILLS:-4}
up k 64M --no-swapon
mkfifo /tmp/end
verifying_load "$(status_of k device)" </tmp/end >/tmp/load &
load=$!
exec 7>/tmp/end
wait_until 100 grep -q full /tmp/load || fail "the load does not fill the device"
for n in $(seq "$kills"); do
    usleep $((n * 7919 % 10 * 50000)) # the moment is what is tried
    kill_worker k
done
worker=$(status_of k worker_pid)
kill -STOP "$worker"
sleep "${STOP_S:-8}" # longer than nbd's request timeout
kill -CONT "$worker"
exec 7>&-
wait "$load" || fail "the load: $(cat /tmp/load)"
tail -n 1 /tmp/load
grep -q '"wrong":0,"errors":0' /tmp/load || fail "pages are wrong, or requests failed"
expect "$(status_of k worker_deaths)" -eq "$kills"
down k

up s 64M
new_group vm-takeover 12M
start_hog swap vm-takeover 40 busy
for n in 1 2 3; do
    kill_worker s
done
end_hog swap
down s

up g 64M # in use as swap: its users must get errors, and swapoff an end
device=$(status_of g device)
worker=$(status_of g worker_pid)
kill -KILL "$(status_of g guardian_pid)"
kill -KILL "$worker"
wait_until 100 test ! -d "/proc/$worker" || fail "worker $worker does not end"
down g
[ "$FRONTEND" != ublk ] || wait_until 20 test ! -e "$device" || fail "$device stays, though nobody uses it"
expect "$(dd if="$device" bs=4k count=1 2>/dev/null | wc -c)" -eq 0
