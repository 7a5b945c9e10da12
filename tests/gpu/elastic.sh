#!/bin/sh
# SPDX-License-Identifier: MIT
# Giving VRAM back, on a real GPU, while a load verifies every page: shrinks and grows by hand, and a job that takes memory step
# by step beside it. Needs root, /dev/fuse, loop and RAM for the spill, which is in /dev/shm (a disk would be what is measured).
# usage: elastic.sh BUILD OUT [DEVICE_GIB] [JOB_GIB]     BUILD: a folder with vramswap and verifying_load
set -u
build=$1
out=$2
device_gib=${3:-8}
job_gib=${4:-60}
here=$(dirname "$0")
mkdir -p "$out"
export VRAMSWAP_RUNTIME_DIR="$out/run"
failed=0

field() { "$build/vramswap" status --json | python3 -c "import json,sys; print(json.load(sys.stdin)['devices'][0]['$1'])"; }
show() { # FILE COMMAND...: its output there and here; its failure is ours
    to=$1
    shift
    "$@" >"$out/last" || failed=1
    tee -a "$out/$to" <"$out/last"
}
keep() { "$build/vramswap" status --json >"$out/status.$1.json"; }

"$build/vramswap" up e0 --gpu cuda --size "${device_gib}G" --no-swapon --spill "/dev/shm:${device_gib}G" || exit 1
mkfifo "$out/end" "$out/told"
"$build/verifying_load" "$(field device)" <"$out/end" >"$out/told" &
load=$!
exec 7>"$out/end" 8<"$out/told"
read -r line <&8 && [ "$line" = full ] || exit 1  # until the device is full
keep full
for round in 1 2 3; do
    show resize.txt "$build/vramswap" resize e0 1G
    keep "small.$round"
    show resize.txt "$build/vramswap" resize e0 100%
    keep "large.$round"
done
show resize.txt "$build/vramswap" resize e0 auto
show job.json python3 "$here/step_job.py" "$job_gib" 2
keep job
exec 7>&-
cat <&8 | tee "$out/load.json"
wait "$load" || failed=1
"$build/vramswap" down e0 || failed=1
echo "failed=$failed"
exit $failed
