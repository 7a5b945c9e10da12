# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# A device that nobody uses takes no CPU time: the threads that serve it do not run at all. The control thread, which looks
# after the store once a second, is shown beside them. $IDLE_S: seconds to look at it (5).
up i 32M
guardian=$(status_of i guardian_pid)
worker=$(status_of i worker_pid)

# "NAME NANOSECONDS" on a CPU, of each thread that is not the worker's control thread
cpu_times() {
    for task in /proc/"$guardian"/task/* /proc/"$worker"/task/*; do
        [ "${task##*/}" = "$worker" ] || echo "$(cat "$task/comm") $(cut -d' ' -f1 "$task/schedstat")"
    done
}

control_us() {
    echo $(($(cut -d' ' -f1 "/proc/$worker/task/$worker/schedstat") / 1000))
}

# Until what `up` began is done.
is_quiet() {
    cpu_times >/tmp/times.out
    usleep 2000000
    cpu_times | cmp -s /tmp/times.out
}

wait_until 60 is_quiet || fail "never quiet: $(cpu_times)"
control=$(control_us)
cpu_times >/tmp/times.out
cat /tmp/times.out
grep -q "^vs-" /tmp/times.out || fail "no threads that serve"
begin=$(cut -d' ' -f1 /proc/uptime)
sleep "${IDLE_S:-5}"
cpu_times >/tmp/times.after.out
control=$(($(control_us) - control))
cmp /tmp/times.out /tmp/times.after.out || fail "they ran: $(cat /tmp/times.after.out)"
echo "uptime $begin to $(cut -d' ' -f1 /proc/uptime): 0 ns for each, control thread $control us"
down i
