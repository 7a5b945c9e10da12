#!/bin/sh
# SPDX-License-Identifier: MIT
# Fails if the release binary needs any shared library besides libc's own: one binary for every glibc distribution, and
# the GPU vendors' libraries only where they are.
set -eu
needed=$(ldd "$1" | awk '{print $1}' | sed 's#.*/##; s/\.so.*//' | sort -u)
for library in $needed; do
    case "$library" in
        linux-vdso | ld-linux-x86-64 | libc | libm | libdl | libpthread | librt) ;;
        *) echo "$1 needs $library" >&2; exit 1 ;;
    esac
done
echo "needs only: $(echo "$needed" | tr '\n' ' ')"
