// SPDX-License-Identifier: MIT
// `vramswap demo`: the main job, end to end, on a device of its own that is gone afterwards.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/device_plan.h"
#include "cli/launch.h"
#include "cli/swap_trial.h"

namespace vramswap {
namespace {

struct DemoResult {
    DevicePlan plan;
    std::string device;
    SwapFigures swap;
    std::uint64_t device_pages_written = 0, device_pages_read = 0;
    Bytes vram_peak{}, ram_device{};
    /// All bytes right, the reads were real ones, and this device had its part in them (another area of the
    /// same priority takes its turn).
    [[nodiscard]] bool ok() const { return swap.ok() && device_pages_read > 0; }
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
        trial_.emplace(interrupts_, fmt::format("vramswap-demo-{}", ::getpid()), data_);
        if (auto r = trial_->prepare(); !r) return std::move(r).error();
        auto before = device_status(running_->name);
        if (!before) return std::move(before).error();
        if (auto r = trial_->write(); !r) return std::move(r).error();
        auto filled = device_status(running_->name);
        if (!filled) return std::move(filled).error();
        if (auto r = trial_->read_back(); !r) return std::move(r).error();
        auto after = device_status(running_->name);
        if (!after) return std::move(after).error();
        evaluate(*before, *filled, *after);
        if (auto r = clean_up(); !r) return std::move(r).error();
        return result_;
    }

  private:
    Result<void> bring_up() {
        auto data = parse_trial_data(options_.data);
        if (!data) return std::move(data).error();
        data_ = *data;
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

    void evaluate(const DeviceStatus& before, const DeviceStatus& filled, const DeviceStatus& after) {
        result_.swap = trial_->figures();
        result_.device_pages_written = after.pages_written - before.pages_written;
        result_.device_pages_read = after.pages_read - before.pages_read;
        result_.vram_peak = std::max(filled.vram, after.vram);
        result_.ram_device = after.ram;
    }

    /// Takes down whatever was brought up so far, in reverse; goes on after an error. Repeating it is
    /// harmless.
    Result<void> clean_up() {
        Result<void> first;
        const auto note = [&first](Result<void> r) {
            if (!r && first) first = std::move(r);
        };
        if (trial_) note(trial_->remove());
        trial_.reset();
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
    std::optional<SwapTrial> trial_;
};

void print_json(const DemoResult& r) {
    const nlohmann::ordered_json j{
        {"ok", r.ok()},
        {"backend", r.plan.gpu.backend},
        {"gpu", r.plan.gpu.name},
        {"frontend", r.plan.config.frontend},
        {"device", r.device},
        {"size_bytes", r.plan.config.size.n},
        {"data_bytes", r.swap.pages * kPageBytes},
        {"pages", r.swap.pages},
        {"pages_wrong", r.swap.pages_wrong},
        {"pswpout", r.swap.pswpout},
        {"pswpin", r.swap.pswpin},
        {"device_pages_written", r.device_pages_written},
        {"device_pages_read", r.device_pages_read},
        {"swap_out_gbps", r.swap.swap_out_gbps},
        {"swap_in_gbps", r.swap.swap_in_gbps},
        {"fault_us", {{"p50", r.swap.p50_us}, {"p90", r.swap.p90_us}, {"p99", r.swap.p99_us}}}};
    fmt::print("{}\n", j.dump(2));
}

void print_table(const DemoResult& r) {
    const Bytes data{r.swap.pages * kPageBytes};
    fmt::print("\n{} of memory, {} of RAM allowed, the rest on {} ({})\n", format_size(data),
               format_size(r.swap.limit), r.plan.gpu.name, r.plan.config.frontend);
    if (r.plan.gpu.backend == "sim")
        fmt::print("This GPU is simulated in RAM: the way is real, the figures are not a GPU's.\n");
    fmt::print("\n  {:<22} {:>12} {:>12}\n", "", "out", "in");
    fmt::print("  {:<22} {:>12} {:>12}\n", "kernel (pages)", r.swap.pswpout, r.swap.pswpin);
    fmt::print("  {:<22} {:>12} {:>12}\n", "device (pages)", r.device_pages_written, r.device_pages_read);
    fmt::print("  {:<22} {:>12.2f} {:>12.2f}\n", "GB/s", r.swap.swap_out_gbps, r.swap.swap_in_gbps);
    fmt::print("\n  {:<22} {:>12} {:>12} {:>12}\n", "page fault", "p50", "p90", "p99");
    fmt::print("  {:<22} {:>9.1f} us {:>9.1f} us {:>9.1f} us   ({} faults)\n", "", r.swap.p50_us,
               r.swap.p90_us, r.swap.p99_us, r.swap.faults);
    fmt::print("\n  VRAM taken {}, RAM spent on it {}\n", format_size(r.vram_peak),
               format_size(r.ram_device));
    fmt::print("  {} pages checked, {} wrong\n\n{}\n", r.swap.pages, r.swap.pages_wrong,
               r.ok() ? "ok" : "NOT OK");
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
