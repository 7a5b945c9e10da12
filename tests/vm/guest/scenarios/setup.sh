# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# What `up` says when the kernel lacks something or refuses, that nothing of it stays, and that it goes around what others
# have taken.

# Processes, swap areas, devices and files of ours.
what_there_is() {
    pidof vramswap
    cat /proc/swaps
    find /run -type f -o -type s
    ls /sys/class/ublk-char 2>/dev/null
    cat /sys/block/nbd*/backend /sys/block/loop*/loop/backing_file 2>/dev/null
}

# refused WORDS...: `up` fails and says each of them
refused() {
    what_there_is >/tmp/before.out
    vramswap up r --gpu sim --frontend "$FRONTEND" --size 32M >/tmp/up.out 2>&1 && fail "up without $1"
    cat /tmp/up.out
    for words in "$@"; do
        grep -qF "$words" /tmp/up.out || fail "not said: $words"
    done
    what_there_is >/tmp/after.out
    cmp -s /tmp/before.out /tmp/after.out || fail "there was, and now is: $(cat /tmp/before.out /tmp/after.out)"
}

# works_without DEVICE: `up` takes another one
works_without() {
    up r 32M
    device=$(status_of r device)
    down r
    expect "$device" != "$1"
    echo "took $device"
}

# Modules out of reach, then in reach again: `up` loads them.
# without_modules WORDS MODULE...
without_modules() {
    words=$1
    shift
    for module in "$@"; do rmmod "$module" || fail "rmmod $module"; done
    mount -t tmpfs tmpfs /lib/modules || fail "mount"
    refused "$words"
    umount /lib/modules
    up r 32M
    down r
}

case $FRONTEND in
    ublk)
        disabled=/proc/sys/kernel/io_uring_disabled
        echo 2 >"$disabled" || fail "no $disabled"
        refused "io_uring is switched off by kernel.io_uring_disabled=2" "sysctl kernel.io_uring_disabled=0"
        /bin/vramswap doctor | grep -qF "kernel.io_uring_disabled=2" || fail "doctor does not tell"
        vramswap up r --gpu sim --frontend auto --size 32M || fail "auto"
        expect "$(status_of r frontend)" = nbd
        down r
        echo 0 >"$disabled"
        without_modules "modprobe ublk_drv" ublk_drv
        up other 32M
        works_without "$(status_of other device)"
        down other
        ;;
    nbd)
        without_modules "no NBD driver" nbd
        exec 5</dev/nbd0
        works_without /dev/nbd0
        exec 5<&-
        ;;
    loop)
        without_modules "modprobe" loop
        dd if=/dev/zero of=/tmp/taken.out bs=1M count=1 2>/dev/null
        losetup /dev/loop0 /tmp/taken.out || fail "losetup"
        works_without /dev/loop0
        losetup -d /dev/loop0
        ;;
esac
