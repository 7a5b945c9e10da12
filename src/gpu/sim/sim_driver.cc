// SPDX-License-Identifier: MIT
#include "gpu/sim/sim_driver.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <optional>

#include "base/log.h"
#include "gpu/sim/sim_backend.h"

namespace vramswap {
namespace {

struct Setting {
    std::string_view key;
    std::string_view value;
};

std::optional<std::uint64_t> parse_number(const Setting& setting) {
    std::uint64_t number = 0;
    const char* const last = setting.value.data() + setting.value.size();
    const auto [end, ec] = std::from_chars(setting.value.data(), last, number);
    if (ec == std::errc{} && end == last) return number;
    log_warning("VRAMSWAP_SIM: '{}' is not a number for {}", setting.value, setting.key);
    return {};
}

/// False if it is none of the faults'.
bool apply_fault(SimFaults& faults, std::string_view key, std::uint64_t number) {
    if (key == "latency_us")
        faults.latency_ns = number * 1000;
    else if (key == "bandwidth_mbps")
        faults.bytes_per_us = number;  // 1 MB/s is 1 byte/us
    else if (key == "taken_mib")
        faults.taken_by_others = number << 20;
    else if (key == "others_sm")
        faults.others_sm = static_cast<std::uint32_t>(number);
    else if (key == "fail_allocations")
        faults.fail_allocations = static_cast<std::uint32_t>(number);
    else
        return false;
    return true;
}

/// All but `gpus`.
void apply_setting(SimConfig& config, const Setting& setting) {
    if (setting.key == "total") {
        if (auto size = parse_size(setting.value, "VRAMSWAP_SIM total"))
            config.total = {round_up(size->of(gib(8)).n, kChunkBytes)};
        else
            log_warning("{}", size.error().text());
        return;
    }
    const auto number = parse_number(setting);
    if (!number) return;
    if (setting.key == "turbo")
        config.turbo = *number != 0;
    else if (!apply_fault(*config.faults, setting.key, *number))
        log_warning("VRAMSWAP_SIM: unknown key '{}'", setting.key);
    for (const auto& faults : config.more_faults) (void)apply_fault(*faults, setting.key, *number);
}

void set_gpus(SimConfig& config, const Setting& setting) {
    const auto gpus = parse_number(setting);
    if (!gpus) return;
    if (*gpus == 0 || *gpus > kSimGpusMax)
        return log_warning("VRAMSWAP_SIM: gpus={} is not between 1 and {}", *gpus, kSimGpusMax);
    config.more_faults.resize(*gpus - 1);
    for (auto& faults : config.more_faults) faults = std::make_shared<SimFaults>();
}

/// "KEY=VALUE,KEY=VALUE"
std::vector<Setting> split(std::string_view text) {
    std::vector<Setting> settings;
    while (!text.empty()) {
        const auto comma = text.find(',');
        const std::string_view item = text.substr(0, comma);
        text = comma == std::string_view::npos ? std::string_view{} : text.substr(comma + 1);
        const auto equals = item.find('=');
        if (equals == std::string_view::npos)
            log_warning("VRAMSWAP_SIM: '{}' is not KEY=VALUE", item);
        else
            settings.push_back({item.substr(0, equals), item.substr(equals + 1)});
    }
    return settings;
}

class SimDriver final : public Driver {
  public:
    explicit SimDriver(SimConfig config) : config_(std::move(config)) {}

    Result<std::vector<GpuInfo>> enumerate() override {
        std::vector<GpuInfo> gpus;
        for (std::size_t n = 0; n <= config_.more_faults.size(); ++n) gpus.push_back(inspect(n));
        return gpus;
    }

    Result<std::unique_ptr<Backend>> open(const GpuInfo& gpu) override {
        const auto n = static_cast<std::size_t>(gpu.index);
        if (n > config_.more_faults.size())
            return Error{Errc::not_found, 0, fmt::format("GPU {} is not there", gpu.selector()),
                         "VRAMSWAP_SIM=gpus=N simulates so many"};
        return std::unique_ptr<Backend>(new SimBackend(gpu, of_gpu(n)));
    }

  private:
    /// As if it were the only one.
    SimConfig of_gpu(std::size_t n) const {
        return {config_.total, config_.exportable, config_.turbo,
                n == 0 ? config_.faults : config_.more_faults.at(n - 1)};
    }

    GpuInfo inspect(std::size_t n) const {
        GpuInfo gpu;
        gpu.backend = "sim";
        gpu.index = static_cast<int>(n);
        gpu.name = "simulated GPU in RAM";
        gpu.uuid = fmt::format("SIM-00000000-0000-0000-0000-{:012x}", n);
        gpu.total = config_.total;
        const Bytes taken{of_gpu(n).faults->taken_by_others.load()};
        gpu.free = taken < gpu.total ? gpu.total - taken : Bytes{0};
        gpu.kind = GpuKind::simulated;
        gpu.driver = "sim";
        return gpu;
    }

    const SimConfig config_;
};

}  // namespace

SimConfig sim_config_from_env() {
    SimConfig config;
    const char* text = std::getenv("VRAMSWAP_SIM");
    const auto settings = split(text == nullptr ? "" : text);
    // The number of GPUs first, wherever it stands: the rest is for all of them.
    for (const Setting& setting : settings)
        if (setting.key == "gpus") set_gpus(config, setting);
    for (const Setting& setting : settings)
        if (setting.key != "gpus") apply_setting(config, setting);
    return config;
}

std::unique_ptr<Driver> make_sim_driver(SimConfig config) {
    return std::make_unique<SimDriver>(std::move(config));
}

}  // namespace vramswap
