# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# What scenarios share: read before each. A scenario is a file of its own in guest/scenarios; it exits 0 if all is well, 77 with a line
# "SKIPPED: reason" if it cannot run, and anything else if it failed. Whatever it leaves behind, clean_up takes away.
set -u
: "${FRONTEND:?which frontend}"
# A segment more than the largest device: the policy leaves one to others.
export VRAMSWAP_SIM="total=$((VM_VRAM_MIB + 128))M"

fail() {
    echo "FAILED: $*"
    exit 1
}

skip() {
    echo "SKIPPED: $*"
    exit 77
}

# need PROGRAM PACKAGE: what the host lacked when it made the image
need() {
    command -v "$1" >/dev/null || skip "$1 is not installed ($2)"
}

# The simulated GPU has its memory in huge pages that were set aside at boot: it takes nothing of the guest's RAM.
vramswap() {
    LD_PRELOAD=/lib/libvm_huge_vram.so /bin/vramswap "$@"
}

# up NAME SIZE [option...]
up() {
    up_name=$1
    up_size=$2
    shift 2
    vramswap up "$up_name" --gpu sim --frontend "$FRONTEND" --size "$up_size" "$@" || fail "up $up_name"
}

down() {
    vramswap down "$1" || fail "down $1"
}

# status_of NAME KEY: one value of `status --json`, the device's own: parts of it, further in, have keys of the same names
status_of() {
    /bin/vramswap status "$1" --json | sed -n "s/^ \{6\}\"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p"
}

vmstat_of() {
    awk -v key="$1" '$1 == key { print $2 }' /proc/vmstat
}

meminfo_kib() {
    awk -v key="$1:" '$1 == key { print $2 }' /proc/meminfo
}

oom_kills_before=$(vmstat_of oom_kill)

# expect WORDS...: a condition of test(1), shown if it does not hold
expect() {
    test "$@" || fail "expected $*"
}

# wait_until SECONDS COMMAND...: the command decides, the time is only a limit
wait_until() {
    wait_end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$wait_end" ] || return 1
        usleep 50000
    done
}

# start_hog NAME GROUP MIB busy|idle: in the background, in a control group (or "" for none); returns when it has filled
# its memory
start_hog() {
    : >"/tmp/hog-$1.out"
    (
        [ -z "$2" ] || echo 0 >"/sys/fs/cgroup/$2/cgroup.procs"
        exec vm_hog "$3" "$4" >"/tmp/hog-$1.out"
    ) &
    echo $! >"/tmp/hog-$1.pid"
    wait_until 200 hog_is_ready_or_dead "$1" || fail "hog $1 has not filled its memory"
    grep -q '^filled$' "/tmp/hog-$1.out" || fail "hog $1 has died"
}

hog_pid() {
    cat "/tmp/hog-$1.pid"
}

hog_is_ready_or_dead() {
    grep -q '^filled$' "/tmp/hog-$1.out" || ! kill -0 "$(hog_pid "$1")"
}

# end_hog NAME: tells it to check every page, and fails if one is wrong
end_hog() {
    kill -TERM "$(hog_pid "$1")" || fail "hog $1 has died"
    wait "$(hog_pid "$1")"
    hog_status=$?
    cat "/tmp/hog-$1.out"
    expect "$hog_status" -eq 0
}

# kill_hog NAME: without a word, as the OOM killer would
kill_hog() {
    kill -KILL "$(hog_pid "$1")" || fail "hog $1 has died"
    wait "$(hog_pid "$1")"
}

# new_group NAME LIMIT: one that slows down. At memory.max Linux 6.12 gives up and kills when the whole group is on its way to a
# device that a busy host keeps waiting.
new_group() {
    mkdir "/sys/fs/cgroup/$1"
    echo "$2" >"/sys/fs/cgroup/$1/memory.high"
}

no_oom_kill() {
    [ "$(vmstat_of oom_kill)" -eq "$oom_kills_before" ] || fail "the OOM killer has struck"
}

# At the end of every scenario, whatever happened in it: the next one finds a machine like the first one did.
clean_up() {
    clean_status=$?
    killall -q -KILL vm_hog fio
    for name in $(/bin/vramswap status -o NAME | tail -n +2); do
        /bin/vramswap down "$name" >/dev/null || clean_status=1
    done
    for group in /sys/fs/cgroup/vm-*; do
        [ ! -d "$group" ] || wait_until 20 rmdir "$group" 2>/dev/null || clean_status=1
    done
    rm -f /tmp/*
    exit "$clean_status"
}
trap clean_up EXIT
