// SPDX-License-Identifier: MIT
#include "front/target.h"

namespace vramswap {

IoStatus TargetQueue::submit(BlockRequest& r) {
    if (r.bytes == 0 || r.offset % kPageBytes != 0 || r.bytes % kPageBytes != 0)
        return r.status = IoStatus::misaligned;
    if (r.offset > device_size_.n || r.bytes > device_size_.n - r.offset)
        return r.status = IoStatus::out_of_range;
    if (r.op != BlockRequest::Op::discard && r.bytes > BlockRequest::kMaxTransferBytes)
        return r.status = IoStatus::out_of_range;
    r.status = IoStatus::pending;
    r.in_target = nullptr;
    return r.status = do_submit(r);
}

std::size_t TargetQueue::poll(std::span<BlockRequest*> done) {
    return do_poll(done);
}

}  // namespace vramswap
