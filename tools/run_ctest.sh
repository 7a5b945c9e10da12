#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs ctest in a build folder and prints, for each skipped test, why: a skip is never silent.
# usage: run_ctest.sh BUILD [ctest options]
set -u
build=$1
shift
ctest --test-dir "$build" --output-on-failure "$@"
status=$?
log=$build/Testing/Temporary/LastTest.log
if [ -f "$log" ] && grep -q '^SKIPPED: ' "$log"; then
    echo "Skipped, and why:"
    grep '^SKIPPED: ' "$log" | sort -u | sed 's/^SKIPPED: /  /'
fi
exit $status
