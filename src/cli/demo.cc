// SPDX-License-Identifier: MIT
// `vramswap demo`: the main job, end to end, on a device of its own that is gone afterwards.
#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/demo_child.h"
#include "cli/launch.h"
#include "cli/table.h"
#include "ctl/runtime_dir.h"
#include "sys/cgroup.h"

namespace vramswap {
namespace {

struct Counters {
    std::uint64_t pswpin = 0, pswpout = 0;
    DeviceStatus device;
};

struct DemoResult {
    DevicePlan plan;
    std::string device;
    std::uint64_t pages = 0, pages_wrong = 0;
    std::uint64_t pswpout = 0, pswpin = 0, device_pages_written = 0, device_pages_read = 0;
    Bytes vram_peak{}, ram_device{}, limit{};
    double swap_out_gbps = 0, swap_in_gbps = 0;
    double p50_us = 0, p90_us = 0, p99_us = 0;
    std::uint64_t faults = 0;
    /// All bytes right, the reads were real ones, and this device had its part in them (another area of the
    /// same priority takes its turn).
    [[nodiscard]] bool ok() const { return pages_wrong == 0 && pswpin >= pages / 2 && device_pages_read > 0; }
};

/// SIGINT and friends as a descriptor, so that everything is taken down in order.
class Interrupts {
  public:
    Interrupts() {
        sigset_t set;
        sigemptyset(&set);
        for (const int s : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, s);
        sigprocmask(SIG_BLOCK, &set, nullptr);
        fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    }
    [[nodiscard]] int fd() const { return fd_.get(); }
    [[nodiscard]] Result<void> check() const {
        pollfd p{fd_.get(), POLLIN, 0};
        if (::poll(&p, 1, 0) != 1) return {};
        return Error{Errc::failed, 0, "interrupted", "Everything was taken down"};
    }

  private:
    UniqueFd fd_;
};

class Demo {
  public:
    explicit Demo(const DemoOptions& options) : options_(options) {}
    ~Demo() {
        if (auto cleaned = clean_up(); !cleaned) (void)report(cleaned.error());
    }
    Demo(const Demo&) = delete;
    Demo& operator=(const Demo&) = delete;

    Result<DemoResult> run() {
        if (auto r = bring_up(); !r) return std::move(r).error();
        if (auto r = start_child(); !r) return std::move(r).error();
        auto before = counters();
        if (!before) return std::move(before).error();
        child_->go();
        if (auto r = watch("writing", child_->progress().pages_filled, child_->progress().fill_ns); !r)
            return std::move(r).error();
        auto filled = counters();
        if (!filled) return std::move(filled).error();
        child_->go_on();
        if (auto r = watch("reading and checking", child_->progress().pages_read, child_->progress().read_ns);
            !r)
            return std::move(r).error();
        if (auto r = child_->wait(); !r) return std::move(r).error();
        auto after = counters();
        if (!after) return std::move(after).error();
        evaluate(*before, *filled, *after);
        if (auto r = clean_up(); !r) return std::move(r).error();
        return result_;
    }

  private:
    Result<void> bring_up() {
        auto data = parse_size(options_.data, "--data");
        if (!data) return std::move(data).error();
        if (data->kind != SizeSpec::Kind::bytes || data->amount < mib(16).n)
            return Error{Errc::usage, 0,
                         fmt::format("--data {} is not an amount of 16M or more", options_.data)};
        data_ = {round_down(data->amount, kPageBytes)};
        auto plan = plan_device(
            {fmt::format("demo-{}", ::getpid()), options_.size, options_.gpu, options_.frontend, 0},
            AllowSim::as_fallback);
        if (!plan) return std::move(plan).error();
        if (data_ + mib(64) > plan->config.size)
            return Error{Errc::usage, 0,
                         fmt::format("{} of data do not fit a device of {}", format_size(data_),
                                     format_size(plan->config.size))};
        result_.plan = std::move(*plan);
        if (auto r = interrupts_.check(); !r) return r;
        auto running = launch_device(result_.plan.config);
        if (!running) return std::move(running).error();
        running_ = std::move(*running);
        result_.device = running_->device;
        return start_swapping(*running_, kSwapPriorityMax);
    }

    Result<void> start_child() {
        result_.limit = {round_down(data_.n / 4, kPageBytes)};
        auto group = MemoryCgroup::create(fmt::format("vramswap-demo-{}", ::getpid()), result_.limit);
        if (!group) return std::move(group).error();
        group_.emplace(std::move(*group));
        auto child = DemoChild::start(data_);
        if (!child) return std::move(child).error();
        child_ = std::move(*child);
        return group_->add_pid(child_->pid());
    }

    Result<Counters> counters() const {
        auto vm = read_vmstat();
        if (!vm) return std::move(vm).error();
        auto device = device_status(running_->name);
        if (!device) return std::move(device).error();
        return Counters{vm->pswpin(), vm->pswpout(), std::move(*device)};
    }

    /// Until the child has finished a phase (its duration is set), died, or we are interrupted.
    Result<void> watch(const char* label, const std::atomic<std::uint64_t>& done,
                       const std::atomic<std::uint64_t>& duration) {
        constexpr int kLookMs = 20;
        Progress bar(label);
        while (duration.load(std::memory_order_acquire) == 0) {
            std::array<pollfd, 2> events{pollfd{interrupts_.fd(), POLLIN, 0},
                                         pollfd{child_->pidfd(), POLLIN, 0}};
            ::poll(events.data(), events.size(), kLookMs);
            if (auto r = interrupts_.check(); !r) return r;
            if (events[1].revents != 0 && duration.load(std::memory_order_acquire) == 0)
                return child_->wait();
            bar.show(static_cast<double>(done.load()) / static_cast<double>(child_->pages()));
        }
        return {};
    }

    void evaluate(const Counters& before, const Counters& filled, const Counters& after) {
        const DemoProgress& p = child_->progress();
        const auto gbps = [](std::uint64_t pages, std::uint64_t ns) {
            return ns == 0 ? 0.0 : static_cast<double>(pages * kPageBytes) / static_cast<double>(ns);
        };
        DemoResult& r = result_;
        r.pages = child_->pages();
        r.pages_wrong = p.pages_wrong.load();
        r.pswpout = after.pswpout - before.pswpout;
        r.pswpin = after.pswpin - before.pswpin;
        r.device_pages_written = after.device.pages_written - before.device.pages_written;
        r.device_pages_read = after.device.pages_read - before.device.pages_read;
        r.vram_peak = std::max(filled.device.vram, after.device.vram);
        r.ram_device = after.device.ram;
        r.swap_out_gbps = gbps(filled.pswpout - before.pswpout, p.fill_ns.load());
        r.swap_in_gbps = gbps(after.pswpin - filled.pswpin, p.read_ns.load());
        std::vector<std::uint64_t> sorted(child_->latencies_ns().begin(), child_->latencies_ns().end());
        std::ranges::sort(sorted);
        const auto percentile = [&sorted](double share) {
            if (sorted.empty()) return 0.0;
            const auto at = static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1));
            return static_cast<double>(sorted[at]) / 1000.0;
        };
        r.faults = sorted.size();
        r.p50_us = percentile(0.50);
        r.p90_us = percentile(0.90);
        r.p99_us = percentile(0.99);
    }

    /// Takes down whatever was brought up so far, in reverse; goes on after an error. Repeating it is
    /// harmless.
    Result<void> clean_up() {
        Result<void> first;
        const auto note = [&first](Result<void> r) {
            if (!r && first) first = std::move(r);
        };
        child_.reset();
        if (group_) note(group_->remove());
        group_.reset();
        if (!running_) return first;
        const RunningDevice running = *running_;
        running_.reset();
        auto off = stop_swapping(running.device);
        note(off);
        if (off) note(remove_device(running.name));
        return first;
    }

    const DemoOptions& options_;
    const Interrupts interrupts_;
    Bytes data_{};
    DemoResult result_;
    std::optional<RunningDevice> running_;
    std::optional<MemoryCgroup> group_;
    std::unique_ptr<DemoChild> child_;
};

void print_json(const DemoResult& r) {
    const nlohmann::ordered_json j{{"ok", r.ok()},
                                   {"backend", r.plan.gpu.backend},
                                   {"gpu", r.plan.gpu.name},
                                   {"frontend", r.plan.config.frontend},
                                   {"device", r.device},
                                   {"size_bytes", r.plan.config.size.n},
                                   {"data_bytes", r.pages * kPageBytes},
                                   {"pages", r.pages},
                                   {"pages_wrong", r.pages_wrong},
                                   {"pswpout", r.pswpout},
                                   {"pswpin", r.pswpin},
                                   {"device_pages_written", r.device_pages_written},
                                   {"device_pages_read", r.device_pages_read},
                                   {"swap_out_gbps", r.swap_out_gbps},
                                   {"swap_in_gbps", r.swap_in_gbps},
                                   {"fault_us", {{"p50", r.p50_us}, {"p90", r.p90_us}, {"p99", r.p99_us}}}};
    fmt::print("{}\n", j.dump(2));
}

void print_table(const DemoResult& r) {
    const Bytes data{r.pages * kPageBytes};
    fmt::print("\n{} of memory, {} of RAM allowed, the rest on {} ({})\n", format_size(data),
               format_size(r.limit), r.plan.gpu.name, r.plan.config.frontend);
    if (r.plan.gpu.backend == "sim")
        fmt::print("This GPU is simulated in RAM: the way is real, the figures are not a GPU's.\n");
    fmt::print("\n  {:<22} {:>12} {:>12}\n", "", "out", "in");
    fmt::print("  {:<22} {:>12} {:>12}\n", "kernel (pages)", r.pswpout, r.pswpin);
    fmt::print("  {:<22} {:>12} {:>12}\n", "device (pages)", r.device_pages_written, r.device_pages_read);
    fmt::print("  {:<22} {:>12.2f} {:>12.2f}\n", "GB/s", r.swap_out_gbps, r.swap_in_gbps);
    fmt::print("\n  {:<22} {:>12} {:>12} {:>12}\n", "page fault", "p50", "p90", "p99");
    fmt::print("  {:<22} {:>9.1f} us {:>9.1f} us {:>9.1f} us   ({} faults)\n", "", r.p50_us, r.p90_us,
               r.p99_us, r.faults);
    fmt::print("\n  VRAM taken {}, RAM spent on it {}\n", format_size(r.vram_peak),
               format_size(r.ram_device));
    fmt::print("  {} pages checked, {} wrong\n\n{}\n", r.pages, r.pages_wrong, r.ok() ? "ok" : "NOT OK");
}

}  // namespace

int run_demo(const DemoOptions& options) {
    if (auto root = require_root("`vramswap demo`"); !root) return report(root.error());
    Demo demo(options);
    const auto result = demo.run();
    if (!result) return report(result.error());
    if (options.output == Output::json)
        print_json(*result);
    else
        print_table(*result);
    return result->ok() ? kExitDone : kExitFailed;
}

}  // namespace vramswap
