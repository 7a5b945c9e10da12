// SPDX-License-Identifier: MIT
// A process that owns more memory than the guest has, and knows every byte of it.
// usage: vm_hog MIB once|busy|idle
// Fills its pages, each with content of its own, and prints "filled". Then `busy` reads, checks and rewrites
// random pages and `idle` sleeps, both until SIGTERM. In the end every page is checked; prints the count,
// exits 1 if one was wrong.
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kWords = kPageBytes / sizeof(std::uint64_t);

std::atomic<bool> ended{false};

/// splitmix64: neighbours have nothing in common.
std::uint64_t mix(std::uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/// Pages with a generation each: how often a page was rewritten decides its content.
class Pages {
  public:
    explicit Pages(std::size_t bytes) : generations_(bytes / kPageBytes) {
        void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            std::perror("mmap");
            std::exit(2);
        }
        words_ = {static_cast<std::uint64_t*>(memory), bytes / sizeof(std::uint64_t)};
    }

    [[nodiscard]] std::size_t count() const { return generations_.size(); }

    void write(std::size_t page) {
        std::uint64_t value = seed(page);
        for (auto& word : words_.subspan(page * kWords, kWords)) word = value += kStep;
    }
    void rewrite(std::size_t page) {
        ++generations_[page];
        write(page);
    }
    /// Says which bytes are wrong, up to a few times.
    void check(std::size_t page) {
        std::uint64_t value = seed(page);
        for (const auto& word : words_.subspan(page * kWords, kWords)) {
            if (word == (value += kStep)) continue;
            if (++wrong_ <= 5)
                std::printf("page %zu generation %u: %016lx for %016lx\n", page, generations_[page], word,
                            value);
            return;
        }
    }
    [[nodiscard]] std::size_t wrong() const { return wrong_; }

  private:
    static constexpr std::uint64_t kStep = 0xD1342543DE82EF95u;
    [[nodiscard]] std::uint64_t seed(std::size_t page) const { return mix(page << 24 | generations_[page]); }

    std::span<std::uint64_t> words_;
    std::vector<std::uint32_t> generations_;
    std::size_t wrong_ = 0;
};

void stay_busy(Pages& pages) {
    for (std::uint64_t turn = 0; !ended; ++turn) {
        const std::size_t page = mix(turn) % pages.count();
        pages.check(page);
        if (turn % 2 == 0) pages.rewrite(page);
    }
}

void stay_idle() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    int signal = 0;
    sigwait(&set, &signal);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view mode = argc == 3 ? argv[2] : "";
    const std::size_t mib = argc == 3 ? std::strtoul(argv[1], nullptr, 10) : 0;
    if (mib == 0 || (mode != "once" && mode != "busy" && mode != "idle")) {
        std::fputs("usage: vm_hog MIB once|busy|idle\n", stderr);
        return 2;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    if (mode == "idle") {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigprocmask(SIG_BLOCK, &set, nullptr);
    } else {
        ::signal(SIGTERM, [](int) { ended = true; });
    }
    Pages pages(mib << 20);
    for (std::size_t page = 0; page < pages.count(); ++page) pages.write(page);
    std::puts("filled");
    if (mode == "busy") stay_busy(pages);
    if (mode == "idle") stay_idle();
    for (std::size_t page = 0; page < pages.count(); ++page) pages.check(page);
    std::printf("%zu pages checked, %zu wrong\n", pages.count(), pages.wrong());
    return pages.wrong() == 0 ? 0 : 1;
}
