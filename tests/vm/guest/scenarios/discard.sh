# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# What a process leaves on the swap area when it ends, the kernel discards: the store forgets it. With the area off and
# discarded as a whole, the VRAM goes back to the GPU but for one segment kept in reserve.
segment=$((128 << 20))
stores_at_most() { [ "$(status_of d stored_bytes)" -le "$1" ]; }
takes_at_most() { [ "$(status_of d vram_bytes)" -le "$1" ]; }
tell() { echo "$1: $(status_of d vram_bytes) bytes of VRAM, $(status_of d stored_bytes) stored"; }

up d "${VM_VRAM_MIB}M"
new_group vm-discard 24M
start_hog big vm-discard 296 idle
tell "in use"
expect "$(status_of d vram_bytes)" -gt $((2 * segment))
peak=$(status_of d stored_bytes)
kill_hog big
# The kernel keeps some freed slots for each processor and does not discard the clusters they lie in: up to 8 % seen.
wait_until 60 stores_at_most $((peak / 4)) || fail "$(tell "not forgotten")"
tell "after its end"
device=$(status_of d device)
swapoff "$device" || fail "swapoff"
blkdiscard "$device" || fail "blkdiscard"
wait_until 60 takes_at_most "$segment" || fail "$(tell "not given back")"
tell "discarded"
expect "$(status_of d stored_bytes)" -eq 0
down d
