// SPDX-License-Identifier: MIT
// Small disks for tests: a loop device over a file, and file systems of a few MiB. They vanish with their
// owner, at the latest with the process: loop devices clear themselves, mounts are in a namespace of this
// thread. Throw std::system_error where the right or the kernel for it is missing (tests skip then, with its
// text).
#pragma once

#include <string>

#include "base/unique_fd.h"
#include "base/units.h"

namespace vramswap::test {

/// An empty directory on the disk of the system's temporary files.
class TemporaryDirectory {
  public:
    TemporaryDirectory();
    ~TemporaryDirectory();
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    [[nodiscard]] const std::string& path() const { return path_; }

  private:
    std::string path_;
};

/// A block device; `backing` is its file.
class LoopDevice {
  public:
    explicit LoopDevice(Bytes size);
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] const UniqueFd& backing() const { return backing_; }

  private:
    UniqueFd backing_;
    UniqueFd device_;
    std::string path_;
};

/// A mounted tmpfs of exactly that size.
class SmallTmpfs {
  public:
    explicit SmallTmpfs(Bytes size);
    ~SmallTmpfs();
    SmallTmpfs(const SmallTmpfs&) = delete;
    SmallTmpfs& operator=(const SmallTmpfs&) = delete;
    [[nodiscard]] const std::string& path() const { return directory_.path(); }

  private:
    TemporaryDirectory directory_;
};

/// A mounted ext4 on a loop device of that size. Needs mkfs.ext4.
class SmallExt4 {
  public:
    explicit SmallExt4(Bytes size);
    ~SmallExt4();
    SmallExt4(const SmallExt4&) = delete;
    SmallExt4& operator=(const SmallExt4&) = delete;
    [[nodiscard]] const std::string& path() const { return directory_.path(); }

  private:
    LoopDevice device_;
    TemporaryDirectory directory_;
};

/// Makes an ext4 on a device without mounting it.
void make_ext4(const std::string& device);

}  // namespace vramswap::test
