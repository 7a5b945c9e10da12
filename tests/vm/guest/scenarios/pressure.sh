# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Memory of one and a half times what is available, no control group: the kernel's own reclaim must swap, and nobody dies.
huge_free=$(awk '$1 == "HugePages_Free:" { print $2 }' /proc/meminfo)
up p "${VM_VRAM_MIB}M"
data_mib=$(($(meminfo_kib MemAvailable) * 3 / 2 / 1024))
echo "$data_mib MiB of data, $(($(meminfo_kib MemAvailable) / 1024)) MiB available"
out=$(vmstat_of pswpout) in=$(vmstat_of pswpin)
vm_hog "$data_mib" once || fail "hog: $?"
echo "out $(($(vmstat_of pswpout) - out)) pages, in $(($(vmstat_of pswpin) - in)) pages"
# A third of the data is more than there was room for; the half of it must have been out and in again at least.
expect $(($(vmstat_of pswpout) - out)) -ge $((data_mib * 256 / 6))
expect $(($(vmstat_of pswpin) - in)) -ge $((data_mib * 256 / 6))
expect "$(status_of p pages_read)" -gt 0
expect "$(status_of p read_errors)" -eq 0
expect "$(awk '$1 == "HugePages_Free:" { print $2 }' /proc/meminfo)" -lt "$huge_free"
no_oom_kill
down p
