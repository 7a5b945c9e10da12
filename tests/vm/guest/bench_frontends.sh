#!/bin/sh
# SPDX-License-Identifier: MIT
# Compares the frontends of this kernel in one machine: the same simulated GPU, the same work, in turns, so that what
# disturbs the host disturbs all. Prints a table with the median of $ROUNDS rounds of $SECONDS_EACH seconds each.
#   tests/vm/run.py --kernel 7.3 --limit 1800 --command 'sh /vm/bench_frontends.sh'
FRONTENDS=${FRONTENDS:-ublk nbd loop}
ROUNDS=${ROUNDS:-3}
SECONDS_EACH=${SECONDS_EACH:-5}
export VRAMSWAP_SIM="total=$((VM_VRAM_MIB + 128))M"
results=/tmp/results
group=/sys/fs/cgroup/vm-bench

vramswap() {
    LD_PRELOAD=/lib/libvm_huge_vram.so /bin/vramswap "$@"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# note WORK FRONTEND VALUE
note() {
    echo "$*" >>"$results"
    echo "# $*"
}

# 4 KiB random I/O on the bare device. random_io FRONTEND DEPTH read|write
random_io() {
    device=$(/bin/vramswap status "$1" --json | sed -n 's/^ *"device": "\([^"]*\)",*$/\1/p')
    # fio itself shall cost little: no clock read for each request, no map of what was done, the same data each time.
    fio --name=bench --filename="$device" --rw="rand$3" --bs=4k --iodepth="$2" --ioengine=libaio --direct=1 --thread \
        --gtod_reduce=1 --norandommap --random_generator=lfsr --scramble_buffers=0 \
        --time_based --runtime="$SECONDS_EACH" --ramp_time=1 --output-format=terse --terse-version=3 >/tmp/fio.out || fail "fio on $1"
    field=8
    [ "$3" = read ] || field=49
    note "$3-$2" "$1" "$(cut -d';' -f$field /tmp/fio.out)"
}

# Memory that lies there is reclaimed, in MB/s until the device has written it all. (The demo's own figure for the way out has
# the time in it that its process takes to make its pages; here that is most of it.) reclaim FRONTEND
reclaim() {
    vramswap up bench --gpu sim --frontend "$1" --size 96M || fail "up $1"
    device=$(awk 'NR == 2 { sub("/dev/", "", $1); print $1 }' /proc/swaps)
    mkdir -p "$group"
    : >/tmp/hog.out
    (
        echo 0 >"$group/cgroup.procs"
        exec vm_hog 80 idle >>/tmp/hog.out
    ) &
    hog=$!
    until grep -q filled /tmp/hog.out; do usleep 10000; done
    pages=$(awk '$1 == "pswpout" { print $2 }' /proc/vmstat)
    begin=$(cut -d' ' -f1 /proc/uptime)
    echo 76M 2>/dev/null >"$group/memory.reclaim" # fails if it finds a little less
    until [ "$(tr -s ' ' <"/sys/block/$device/inflight")" = " 0 0" ]; do usleep 2000; done
    end=$(cut -d' ' -f1 /proc/uptime)
    note swap-out "$1" "$(awk -v before="$pages" -v begin="$begin" -v end="$end" \
        '$1 == "pswpout" { printf "%.0f", ($2 - before) / 256 / (end - begin) }' /proc/vmstat)"
    kill -KILL "$hog"
    wait "$hog"
    /bin/vramswap down bench || fail "down $1"
}

# `vramswap demo`: MB/s in, and a page fault's p50 in us. swap_rates FRONTEND
swap_rates() {
    vramswap demo --gpu sim --frontend "$1" --size 96M --data 32M --json >/tmp/demo.json || fail "demo on $1"
    grep -q '"pages_wrong": 0,' /tmp/demo.json || fail "demo on $1: $(cat /tmp/demo.json)"
    note swap-in "$1" "$(value_of swap_in_gbps | awk '{ printf "%.2f", $1 * 1000 }')"
    note fault-p50 "$1" "$(value_of p50)"
}

# value_of KEY: of the demo
value_of() {
    sed -n "s/^ *\"$1\": \([0-9.e-]*\),*$/\1/p" /tmp/demo.json
}

# median WORK FRONTEND
median() {
    awk -v work="$1" -v frontend="$2" '$1 == work && $2 == frontend { print $3 }' "$results" | sort -n |
        awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'
}

: >"$results"
for frontend in $FRONTENDS; do
    vramswap up "$frontend" --gpu sim --frontend "$frontend" --size 48M --no-swapon || fail "up $frontend"
    device=$(/bin/vramswap status "$frontend" --json | sed -n 's/^ *"device": "\([^"]*\)",*$/\1/p')
    dd if=/dev/urandom of="$device" bs=1M count=48 2>/dev/null || fail "dd"
    sync
done
for _ in $(seq "$ROUNDS"); do
    for work in "1 read" "1 write" "32 read" "32 write"; do
        for frontend in $FRONTENDS; do
            # shellcheck disable=SC2086  # two words
            random_io "$frontend" $work
        done
    done
done
for frontend in $FRONTENDS; do
    /bin/vramswap down "$frontend" || fail "down $frontend"
done
for _ in $(seq "$ROUNDS"); do
    for frontend in $FRONTENDS; do
        reclaim "$frontend"
        swap_rates "$frontend"
    done
done

echo "kernel $(uname -r), medians of $ROUNDS"
printf '| work |'
for frontend in $FRONTENDS; do printf ' %s |' "$frontend"; done
echo
for work in read-1 write-1 read-32 write-32 swap-out swap-in fault-p50; do
    printf '| %s |' "$work"
    for frontend in $FRONTENDS; do printf ' %s |' "$(median "$work" "$frontend")"; done
    echo
done
