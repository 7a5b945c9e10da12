# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# A device that nobody uses takes no CPU time: the threads that serve it do not run at all. The control thread, which looks
# after the store once a second, and the monitor's, which looks at the GPU 20 times a second, are shown beside them. $IDLE_S: seconds to look at it (5).
up i 32M
guardian=$(status_of i guardian_pid)
worker=$(status_of i worker_pid)

is_watching() { [ "${1##*/}" = "$worker" ] || [ "$(cat "$1/comm")" = vs-monitor ]; }

# "NAME NANOSECONDS" on a CPU, of each thread that does not only watch
cpu_times() {
    for task in /proc/"$guardian"/task/* /proc/"$worker"/task/*; do
        is_watching "$task" || echo "$(cat "$task/comm") $(cut -d' ' -f1 "$task/schedstat")"
    done
}

watching_us() {
    for task in /proc/"$worker"/task/*; do
        is_watching "$task" && cut -d' ' -f1 "$task/schedstat"
    done | awk '{ sum += $1 } END { print int(sum / 1000) }'
}

# Until what `up` began is done.
is_quiet() {
    cpu_times >/tmp/times.out
    usleep 2000000
    cpu_times | cmp -s /tmp/times.out
}

wait_until 60 is_quiet || fail "never quiet: $(cpu_times)"
watching=$(watching_us)
cpu_times >/tmp/times.out
cat /tmp/times.out
grep -q "^vs-" /tmp/times.out || fail "no threads that serve"
begin=$(cut -d' ' -f1 /proc/uptime)
sleep "${IDLE_S:-5}"
cpu_times >/tmp/times.after.out
watching=$(($(watching_us) - watching))
cmp /tmp/times.out /tmp/times.after.out || fail "they ran: $(cat /tmp/times.after.out)"
echo "uptime $begin to $(cut -d' ' -f1 /proc/uptime): 0 ns for each, control thread and monitor $watching us"
down i
