#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs what building (`build`), testing (`test`), micro-benchmarks (`bench`) and virtual machines (`vm`) need, with apt, on Debian 12 or newer. Does nothing, and needs no
# network, if everything is there.
set -eu

build="g++ cmake ninja-build libfuse3-dev libfmt-dev libcli11-dev nlohmann-json3-dev libxxhash-dev liburing-dev libnl-genl-3-dev libncurses-dev"
test="clang libgtest-dev python3 strace util-linux"
bench="libbenchmark-dev python3"
vm="python3 qemu-system-x86 busybox-static e2fsprogs fio strace"

wanted=""
for set in "$@"; do
    case "$set" in
        build) wanted="$wanted $build" ;;
        test) wanted="$wanted $test" ;;
        bench) wanted="$wanted $bench" ;;
        vm) wanted="$wanted $vm" ;;
        *) echo "usage: $0 build|test|bench|vm ..." >&2; exit 2 ;;
    esac
done

missing=""
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "These packages are needed, and there is no apt-get to install them:$missing" >&2
    exit 1
fi
echo "installing:$missing"
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
