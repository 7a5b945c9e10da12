#!/bin/sh
# SPDX-License-Identifier: MIT
# Everything that needs a real GPU, in one command, from a static build made elsewhere: contract tests of the backend, the
# demo, the bench of the store and of the whole way through the kernel. Needs root, /dev/fuse and loop for the demo. Changes
# no setting of the card.
# usage: run.sh BUILD OUT     BUILD: a folder with vramswap and backend_contract; OUT: where the results go
set -u
build=$1
out=$2
mkdir -p "$out"
failed=0

note() { printf '\n== %s\n' "$*"; }
limit_s=120
run() { # name command...
    name=$1
    shift
    note "$name: $*"
    timeout -k 30 "$limit_s" "$@" >"$out/$name.out" 2>"$out/$name.err"
    status=$?
    tail -n 40 "$out/$name.out"
    tail -n 20 "$out/$name.err" >&2
    echo "$name: exit status $status"
    [ $status -eq 0 ] || failed=1
}

{
    date -u +%Y-%m-%d
    uname -r
    nproc
    nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,pcie.link.gen.current,pcie.link.width.current \
        --format=csv,noheader
} >"$out/machine.txt" 2>&1
cat "$out/machine.txt"

run doctor "$build/vramswap" doctor
run contract env VRAMSWAP_TEST_GPU=cuda "$build/backend_contract"
limit_s=400
run bench "$build/vramswap" bench --gpu cuda --json --plot "$out/bench.svg"
limit_s=120
run swap "$build/vramswap" bench --swap --gpu cuda --json --plot "$out/swap.svg"
run demo "$build/vramswap" demo --gpu cuda --json
run demo2 "$build/vramswap" demo --gpu cuda --json

note "left behind (must be empty)"
swapon --noheadings 2>/dev/null
pgrep -a vramswap
echo "failed=$failed"
exit $failed
