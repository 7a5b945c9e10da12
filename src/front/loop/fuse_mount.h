// SPDX-License-Identifier: MIT
// A FUSE superblock that is never attached to the mount tree: nothing in /proc/mounts, nothing to unmount
// after a crash, nothing that `df` could hang on. Pure functions; control thread only, they open files and
// may block. Errors: unavailable (no FUSE in this kernel, no permission, kernel too old; with the remedy),
// failed.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace vramswap {

/// Opens DEV_DIR/fuse for one new connection; loads the module first where it is missing.
Result<UniqueFd> open_fuse_device(const std::string& dev_dir);

/// Checks that fsopen(2) knows "fuse" and that we may call it. Leaves nothing.
Result<void> check_fuse_filesystem();

/// Binds `fuse_fd` to a new superblock and returns a descriptor for it, to be used with openat(2). The
/// superblock lives as long as this descriptor or a file opened through it; with the last of them the kernel
/// ends the connection and reads of `fuse_fd` give ENODEV. From here on the kernel's INIT request waits in
/// `fuse_fd`.
Result<UniqueFd> mount_fuse_detached(int fuse_fd);

}  // namespace vramswap
