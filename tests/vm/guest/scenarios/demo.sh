# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The demo: swaps out and in, each page checked, kernel and device counters agreeing that it was real.
vramswap demo --gpu sim --frontend "$FRONTEND" --size 128M --data 64M --json >/tmp/demo.json 2>/tmp/demo.out || fail "$(cat /tmp/demo.json /tmp/demo.out)"
cat /tmp/demo.json
grep -q '"ok": true' /tmp/demo.json || fail "not ok"
grep -q "\"frontend\": \"$FRONTEND\"" /tmp/demo.json || fail "another frontend"
