# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# `down` while one process reads and writes its swapped memory and another's lies there: every page must be right.
up s 128M
new_group vm-busy 6M
new_group vm-idle 6M
start_hog idle vm-idle 28 idle
start_hog busy vm-busy 18 busy
# The kernel reads it all back: there must be room for it.
for group in vm-busy vm-idle; do echo max >"/sys/fs/cgroup/$group/memory.high"; done
used=$(status_of s swap_used_bytes)
echo "$used bytes in swap"
expect "$used" -ge $((24 << 20))
down s
expect "$(awk 'END { print NR }' /proc/swaps)" -eq 1
end_hog busy
end_hog idle
no_oom_kill
