# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Random sizes, depth 32, everything written is read and compared.
need fio fio
up f 48M --no-swapon
fio --name=verify --filename="$(status_of f device)" --rw=randwrite --bsrange=4k-256k --blockalign=4k --size=40M \
    --ioengine=libaio --iodepth=32 --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --thread --group_reporting ||
    fail "fio: $?"
expect "$(status_of f read_errors)" -eq 0
down f
