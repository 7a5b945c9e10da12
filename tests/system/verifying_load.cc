// SPDX-License-Identifier: MIT
// verifying_load DEVICE [holes]: fills a block device with pages that know their number and version, then
// reads them at random as page faults do (4 KiB, direct, one at a time) and overwrites some, until standard
// input ends. At last it reads all. With holes every second 2 MiB is discarded when the device is full.
// Prints one line "full" then, and at the end a JSON object: pages, reads, writes, wrong (pages with other
// content), errors (failed requests), and latencies of the random reads in microseconds: p50, p99, worst.
// Exit status 1 if anything was wrong.
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "base/clock.h"

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kWords = kPage / sizeof(std::uint64_t);
constexpr std::size_t kFillPages = 64;
constexpr std::size_t kHolePages = 512;

struct Load {
    int fd = -1;
    std::vector<std::uint32_t> versions;
    std::unique_ptr<std::uint64_t, decltype(&std::free)> memory{
        static_cast<std::uint64_t*>(std::aligned_alloc(kPage, kFillPages* kPage)), &std::free};
    std::mt19937_64 random{1};
    std::vector<std::uint64_t> latencies_ns;
    std::uint64_t reads = 0, writes = 0, wrong = 0, errors = 0;

    /// Version 0: discarded, or never written.
    static std::uint64_t word(std::uint64_t page, std::uint32_t version, std::size_t n) {
        if (version == 0) return 0;
        return ((page << 32) | version) * 0x9E3779B97F4A7C15u + n * 0xD1B54A32D192ED03u;
    }
    static void make(std::uint64_t* at, std::uint64_t page, std::uint32_t version) {
        for (std::size_t n = 0; n < kWords; ++n) at[n] = word(page, version, n);
    }
    void write(std::uint64_t page, std::size_t count) {
        for (std::size_t n = 0; n < count; ++n)
            make(memory.get() + n * kWords, page + n, ++versions[page + n]);
        const auto bytes = static_cast<ssize_t>(count * kPage);
        if (::pwrite(fd, memory.get(), count * kPage, static_cast<off_t>(page * kPage)) != bytes) ++errors;
        ++writes;
    }
    void read(std::uint64_t page, std::size_t count) {
        const auto bytes = static_cast<ssize_t>(count * kPage);
        const ssize_t got = ::pread(fd, memory.get(), count * kPage, static_cast<off_t>(page * kPage));
        ++reads;
        if (got != bytes) {
            ++errors;
            return;
        }
        for (std::size_t n = 0; n < count; ++n)
            if (!holds(memory.get() + n * kWords, page + n)) ++wrong;
    }
    bool holds(const std::uint64_t* at, std::uint64_t page) const {
        for (std::size_t n = 0; n < kWords; ++n)
            if (at[n] != word(page, versions[page], n)) return false;
        return true;
    }
    void read_timed(std::uint64_t page) {
        const std::uint64_t begin = vramswap::now_ns();
        const std::uint64_t before = wrong + errors;
        read(page, 1);
        if (wrong + errors == before) latencies_ns.push_back(vramswap::now_ns() - begin);
    }
    template <typename Do>
    void for_all(Do what) {
        for (std::uint64_t page = 0; page < versions.size(); page += kFillPages)
            what(page, std::min<std::size_t>(kFillPages, versions.size() - page));
    }
    void make_holes() {
        for (std::uint64_t page = 0; page + kHolePages <= versions.size(); page += 2 * kHolePages) {
            std::uint64_t range[2] = {page * kPage, kHolePages * kPage};
            if (::ioctl(fd, BLKDISCARD, range) != 0) ++errors;
            std::fill_n(versions.begin() + static_cast<std::ptrdiff_t>(page), kHolePages, 0);
        }
    }
    void run(bool with_holes) {
        for_all([this](std::uint64_t page, std::size_t count) { write(page, count); });
        if (with_holes) make_holes();
        std::puts("full");
        std::fflush(stdout);
        pollfd input{STDIN_FILENO, POLLIN | POLLHUP, 0};
        while (::poll(&input, 1, 0) == 0)
            for (int n = 0; n < 64; ++n) {
                const std::uint64_t page = random() % versions.size();
                if (random() % 8 == 0 && versions[page] != 0)
                    write(page, 1);
                else
                    read_timed(page);
            }
        for_all([this](std::uint64_t page, std::size_t count) { read(page, count); });
    }
    double percentile(double share) const {
        if (latencies_ns.empty()) return 0;
        const auto at = static_cast<std::size_t>(share * static_cast<double>(latencies_ns.size() - 1));
        return static_cast<double>(latencies_ns[at]) / 1e3;
    }
};

}  // namespace

int main(int argc, char** argv) {
    const bool with_holes = argc == 3 && std::strcmp(argv[2], "holes") == 0;
    if (argc != 2 && !with_holes) return 2;
    Load load;
    load.fd = ::open(argv[1], O_RDWR | O_DIRECT | O_CLOEXEC);
    if (load.fd < 0) {
        std::perror(argv[1]);
        return 2;
    }
    load.versions.resize(static_cast<std::size_t>(::lseek(load.fd, 0, SEEK_END)) / kPage);
    load.latencies_ns.reserve(std::size_t{1} << 22);
    load.run(with_holes);
    std::ranges::sort(load.latencies_ns);
    std::printf(
        "{\"pages\":%zu,\"reads\":%llu,\"writes\":%llu,\"wrong\":%llu,\"errors\":%llu,"
        "\"p50_us\":%.1f,\"p99_us\":%.1f,\"worst_us\":%.1f}\n",
        load.versions.size(), static_cast<unsigned long long>(load.reads),
        static_cast<unsigned long long>(load.writes), static_cast<unsigned long long>(load.wrong),
        static_cast<unsigned long long>(load.errors), load.percentile(0.5), load.percentile(0.99),
        load.percentile(1));
    return load.wrong + load.errors == 0 ? 0 : 1;
}
