// SPDX-License-Identifier: MIT
#include "sys/zram.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <utility>

#include "base/log.h"
#include "sys/process.h"

namespace vramswap {
namespace {

/// Files of class zram-control, Documentation/admin-guide/blockdev/zram.rst. Reading hot_add makes a device.
constexpr const char* kHotAdd = "/sys/class/zram-control/hot_add";
constexpr const char* kHotRemove = "/sys/class/zram-control/hot_remove";

}  // namespace

Result<ZramDevice> ZramDevice::create(Bytes size, const SysRoot& root) {
    auto text = read_small_file(root.at(kHotAdd));
    if (!text && text.error().code == Errc::not_found)
        return Error{Errc::unavailable, 0, "this kernel has no zram",
                     "`modprobe zram` loads it where it is a module"};
    if (!text) return std::move(text).error();
    int number = -1;
    if (std::from_chars(text->data(), text->data() + text->size(), number).ec != std::errc{} || number < 0)
        return Error{Errc::failed, 0,
                     fmt::format("the kernel made zram device '{}', which is no number", *text)};
    ZramDevice device(number, root);
    if (auto sized = write_file(device.file("disksize"), std::to_string(size.n)); !sized)
        return std::move(sized).error().in(device.path());
    return device;
}

ZramDevice::ZramDevice(ZramDevice&& other) noexcept
    : number_(std::exchange(other.number_, -1)), root_(std::move(other.root_)) {}

ZramDevice::~ZramDevice() {
    if (auto removed = remove(); !removed) log_warning("{}", removed.error().text());
}

std::string ZramDevice::path() const {
    return fmt::format("/dev/zram{}", number_);
}

std::string ZramDevice::file(std::string_view name) const {
    return root_.at(fmt::format("/sys/block/zram{}/{}", number_, name));
}

Result<std::string> ZramDevice::algorithm() const {
    auto text = read_small_file(file("comp_algorithm"));
    if (!text) return text;
    const auto begin = text->find('[');
    const auto end = text->find(']');
    if (begin == std::string::npos || end == std::string::npos || end < begin)
        return Error{Errc::failed, 0, fmt::format("{} has no algorithm in use", file("comp_algorithm"))};
    return text->substr(begin + 1, end - begin - 1);
}

Result<Bytes> ZramDevice::ram_used() const {
    auto text = read_small_file(file("mm_stat"));
    if (!text) return std::move(text).error();
    unsigned long long original = 0, compressed = 0, used = 0;
    if (std::sscanf(text->c_str(), "%llu %llu %llu", &original, &compressed, &used) != 3)
        return Error{Errc::failed, 0, fmt::format("{} makes no sense", file("mm_stat"))};
    return Bytes{used};
}

Result<void> ZramDevice::remove() {
    if (number_ < 0) return {};
    auto removed = write_file(root_.at(kHotRemove), std::to_string(number_));
    if (!removed) return std::move(removed).error().in(fmt::format("cannot remove {}", path()));
    number_ = -1;
    return {};
}

}  // namespace vramswap
