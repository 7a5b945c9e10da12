// SPDX-License-Identifier: MIT
#include "cli/device_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "ctl/runtime_dir.h"
#include "sys/spawn.h"

namespace vramswap {
namespace {

constexpr int kProbeTimeoutMs = 60'000;  // a failing GPU makes driver calls hang for up to 45 s (Xid 119)

std::vector<ProbedGpu> selected_gpus(const Probe& probe) {
    std::vector<ProbedGpu> selected;
    for (const auto& selector : probe.selected_gpus)
        for (const auto& gpu : probe.gpus)
            if (gpu.selector == selector) selected.push_back(gpu);
    return selected;
}

/// REQUIRES: one at least.
ProbedGpu joined(const std::vector<ProbedGpu>& gpus) {
    ProbedGpu all = gpus.front();
    bool alike = true;
    for (std::size_t n = 1; n < gpus.size(); ++n) {
        alike = alike && gpus[n].name == gpus.front().name;
        all.selector += "," + gpus[n].selector;
        all.name += " + " + gpus[n].name;
        all.total = all.total + gpus[n].total;
        all.free = all.free + gpus[n].free;
    }
    if (alike && gpus.size() > 1) all.name = fmt::format("{} x {}", gpus.size(), gpus.front().name);
    return all;
}

Result<Bytes> parse_bytes(std::string_view text, const char* option) {
    auto size = parse_size(text, option);
    if (!size) return std::move(size).error();
    if (size->kind == SizeSpec::Kind::bytes) return Bytes{size->amount};
    return Error{Errc::usage, 0, fmt::format("{} '{}' cannot be a share of something", option, text),
                 "Write a size such as 512M"};
}

/// The wishes as values, as far as they can be without knowing the GPU.
struct ParsedWish {
    SizeSpec size;
    Bytes segment{};
    std::optional<SizeSpec> headroom, vram_max;
    Bytes swap_rate_max{};
    SpillWish spill;
};

Result<Bytes> parse_segment(const std::string& text) {
    auto segment = parse_bytes(text, "--segment");
    if (!segment || segment->n % kChunkBytes == 0) return segment;
    return Error{Errc::usage, 0, fmt::format("--segment {} is not a multiple of 2M", text),
                 fmt::format("Write --segment {}", format_size({round_up(segment->n, kChunkBytes)}))};
}

Result<void> parse_optional(const std::string& text, const char* option, std::optional<SizeSpec>& into) {
    if (text.empty()) return {};
    auto size = parse_size(text, option);
    if (!size) return std::move(size).error();
    into = *size;
    return {};
}

Result<ParsedWish> parse(const DeviceWish& wish) {
    ParsedWish parsed;
    if (auto fine = check_name(wish.name); !fine) return std::move(fine).error();
    auto size = parse_size(wish.size, "--size");
    if (!size) return std::move(size).error();
    parsed.size = *size;
    auto segment = parse_segment(wish.segment);
    if (!segment) return std::move(segment).error();
    parsed.segment = *segment;
    if (auto r = parse_optional(wish.headroom, "--headroom", parsed.headroom); !r)
        return std::move(r).error();
    if (auto r = parse_optional(wish.vram_max, "--vram-max", parsed.vram_max); !r)
        return std::move(r).error();
    if (!wish.swap_rate_max.empty()) {
        std::string_view rate = wish.swap_rate_max;
        if (rate.ends_with("/s")) rate.remove_suffix(2);
        auto bytes = parse_bytes(rate, "--swap-rate-max");
        if (!bytes) return std::move(bytes).error();
        parsed.swap_rate_max = *bytes;
    }
    auto spill = parse_spill(wish.spill);
    if (!spill) return std::move(spill).error();
    parsed.spill = std::move(*spill);
    return parsed;
}

/// What of the GPUs the device may have, together.
struct VramLimits {
    Bytes most{};  ///< at any time
    Bytes free{};  ///< now
};

/// What it may have of this one at any time.
Result<Bytes> limit_of(const DeviceWish& wish, const ParsedWish& parsed, const ProbedGpu& gpu) {
    const std::string of_gpu = fmt::format("GPU {} has ({})", gpu.selector, format_size(gpu.total));
    if (parsed.segment > gpu.total)
        return Error{Errc::usage, 0, fmt::format("--segment {} is more than {}", wish.segment, of_gpu),
                     "128M suits GPUs from 1 GiB on"};
    if (parsed.headroom && parsed.headroom->of(gpu.total) >= gpu.total)
        return Error{Errc::usage, 0, fmt::format("--headroom {} is all that {}", wish.headroom, of_gpu),
                     "Nothing would be left for the device: choose less"};
    if (!parsed.vram_max) return gpu.total;
    const Bytes vram_max = parsed.vram_max->of(gpu.total);
    if (vram_max > gpu.total)
        return Error{Errc::usage, 0, fmt::format("--vram-max {} is more than {}", wish.vram_max, of_gpu),
                     "Leave it out: the device takes no more than it has use for"};
    if (vram_max < parsed.segment)
        return Error{Errc::usage, 0,
                     fmt::format("--vram-max {} is less than a segment ({})", wish.vram_max,
                                 format_size(parsed.segment)),
                     "Choose more, or a smaller --segment"};
    return std::min(gpu.total, {round_down(vram_max.n, parsed.segment.n)});
}

Result<VramLimits> limits_for(const DeviceWish& wish, const ParsedWish& parsed,
                              const std::vector<ProbedGpu>& gpus) {
    VramLimits limits;
    for (const ProbedGpu& gpu : gpus) {
        const auto most = limit_of(wish, parsed, gpu);
        if (!most) return most.error();
        limits.most = limits.most + *most;
        limits.free = limits.free + gpu.free;
    }
    return limits;
}

Result<void> check_size_with_spill(const std::string& text, Bytes size, const VramLimits& limits,
                                   const ProbedGpu& gpu, const SpillPlan& spill) {
    if (size <= limits.most + spill.capacity()) return {};
    return Error{
        Errc::usage, 0,
        fmt::format("--size {} is more than {} of GPU {} and {} of spill in {} can hold", text,
                    format_size(limits.most), gpu.selector, format_size(spill.capacity()), spill.path),
        "Choose a smaller size, or a larger spill"};
}

Result<void> check_size_without_spill(const std::string& text, Bytes size, const VramLimits& limits,
                                      const ProbedGpu& gpu, const SpillPlan& spill) {
    const std::string no_spill =
        spill.why_none.empty() ? std::string{} : fmt::format(". There is none: {}", spill.why_none);
    if (size > gpu.total)
        return Error{
            Errc::usage, 0,
            fmt::format("--size {} is more than GPU {} has ({})", text, gpu.selector, format_size(gpu.total)),
            "Without a spill a device cannot be larger than the GPU's memory" + no_spill};
    if (size > limits.most)
        return Error{
            Errc::usage, 0,
            fmt::format("--size {} is more than --vram-max allows ({})", text, format_size(limits.most)),
            "Without a spill a device cannot be larger than the VRAM it may have" + no_spill};
    if (size > limits.free)
        return Error{Errc::no_memory, 0,
                     fmt::format("--size {} is more than is free on GPU {} now ({} of {})", text,
                                 gpu.selector, format_size(gpu.free), format_size(gpu.total)),
                     "Choose a smaller size, or end what uses the GPU" + no_spill};
    return {};
}

Result<Bytes> size_for(const std::string& text, const SizeSpec& spec, const VramLimits& limits,
                       const ProbedGpu& gpu, const SpillPlan& spill) {
    const Bytes size{round_down(spec.of(limits.free).n, kChunkBytes)};
    auto fits = spill.exists() ? check_size_with_spill(text, size, limits, gpu, spill)
                               : check_size_without_spill(text, size, limits, gpu, spill);
    if (!fits) return std::move(fits).error();
    constexpr Bytes kSizeMin = mib(16);
    if (size < kSizeMin)
        return Error{Errc::usage, 0,
                     fmt::format("--size {} gives {}, less than the {} that make sense", text,
                                 format_size(size), format_size(kSizeMin))};
    return size;
}

}  // namespace

Result<Probe> probe_machine(const std::string& gpu, AllowSim sim, const std::string& frontend, GpuLook look) {
    auto text = run_self({"internal-probe", gpu, sim == AllowSim::as_fallback ? "sim-allowed" : "sim-never",
                          frontend, look == GpuLook::open ? "open-gpu" : "leave-gpu"},
                         kProbeTimeoutMs);
    if (!text) return std::move(text).error().in("cannot look for GPUs");
    return parse_probe(*text);
}

Result<DevicePlan> plan_device(const DeviceWish& wish, AllowSim sim, GpuLook look) {
    auto parsed = parse(wish);
    if (!parsed) return std::move(parsed).error();
    auto probe = probe_machine(wish.gpu, sim, wish.frontend, look);
    if (!probe) return std::move(probe).error();
    const std::vector<ProbedGpu> gpus = selected_gpus(*probe);
    if (gpus.empty() || !probe->problem.message.empty()) return probe->problem;
    auto limits = limits_for(wish, *parsed, gpus);
    if (!limits) return std::move(limits).error();
    auto spill = plan_spill(parsed->spill, parsed->segment);
    if (!spill) return std::move(spill).error();
    DevicePlan plan;
    plan.gpu = joined(gpus);
    auto size = size_for(wish.size, parsed->size, *limits, plan.gpu, *spill);
    if (!size) return std::move(size).error();
    plan.spill = std::move(*spill);
    DeviceConfig& config = plan.config;
    config.name = wish.name;
    config.size = *size;
    config.gpu = plan.gpu.selector;
    config.frontend = probe->selected_frontend;
    config.threads = wish.threads;
    config.mode = wish.mode;
    config.segment = parsed->segment;
    config.headroom = wish.headroom;
    config.vram_max = wish.vram_max;
    config.swap_rate_max = parsed->swap_rate_max;
    config.spill = plan.spill.path;
    // More than the device is never used.
    if (plan.spill.exists()) config.spill_size = std::min(plan.spill.size.value_or(*size), *size);
    return plan;
}

}  // namespace vramswap
