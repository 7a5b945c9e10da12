# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The contract suite of all frontends, on this kernel, and what the frontend has of its own.
[ -x /bin/frontend_contract ] || fail "frontend_contract was not built"
frontend_contract --gtest_brief=1 --gtest_filter="*/$FRONTEND" || fail "frontend_contract: $?"
if [ -x "/bin/${FRONTEND}_frontend_contract" ]; then
    "${FRONTEND}_frontend_contract" --gtest_brief=1 || fail "${FRONTEND}_frontend_contract: $?"
fi
