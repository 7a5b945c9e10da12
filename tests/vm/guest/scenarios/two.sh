# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Two devices of one priority take turns; one goes while the other one serves.
up a 64M --priority 100
up b 64M --priority 100
new_group vm-two 12M
start_hog two vm-two 40 busy
for device in a b; do
    echo "$device: $(status_of "$device" pages_written) pages written"
    expect "$(status_of "$device" pages_written)" -gt 1000
done
down a
expect "$(status_of b state)" = armed
end_hog two
down b
