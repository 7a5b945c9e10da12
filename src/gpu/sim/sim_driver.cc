// SPDX-License-Identifier: MIT
#include "gpu/sim/sim_driver.h"

#include <charconv>
#include <cstdlib>

#include "base/log.h"
#include "gpu/sim/sim_backend.h"

namespace vramswap {
namespace {

void apply_setting(SimConfig& config, std::string_view key, std::string_view value) {
    if (key == "total") {
        if (auto size = parse_size(value, "VRAMSWAP_SIM total"))
            config.total = {round_up(size->of(gib(8)).n, kChunkBytes)};
        else
            log_warning("{}", size.error().text());
        return;
    }
    std::uint64_t number = 0;
    const auto [end, ec] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (ec != std::errc{} || end != value.data() + value.size())
        log_warning("VRAMSWAP_SIM: '{}' is not a number for {}", value, key);
    else if (key == "latency_us")
        config.faults->latency_ns = number * 1000;
    else if (key == "bandwidth_mbps")
        config.faults->bytes_per_us = number;  // 1 MB/s is 1 byte/us
    else if (key == "taken_mib")
        config.faults->taken_by_others = number << 20;
    else if (key == "others_sm")
        config.faults->others_sm = static_cast<std::uint32_t>(number);
    else if (key == "turbo")
        config.turbo = number != 0;
    else if (key == "fail_allocations")
        config.faults->fail_allocations = static_cast<std::uint32_t>(number);
    else
        log_warning("VRAMSWAP_SIM: unknown key '{}'", key);
}

class SimDriver final : public Driver {
  public:
    explicit SimDriver(SimConfig config) : config_(std::move(config)) {}

    Result<std::vector<GpuInfo>> enumerate() override {
        GpuInfo gpu;
        gpu.backend = "sim";
        gpu.name = "simulated GPU in RAM";
        gpu.uuid = "SIM-00000000-0000-0000-0000-000000000000";
        gpu.total = config_.total;
        const Bytes taken{config_.faults->taken_by_others.load()};
        gpu.free = taken < gpu.total ? gpu.total - taken : Bytes{0};
        gpu.kind = GpuKind::simulated;
        gpu.driver = "sim";
        return std::vector<GpuInfo>{std::move(gpu)};
    }

    Result<std::unique_ptr<Backend>> open(const GpuInfo& gpu) override {
        return std::unique_ptr<Backend>(new SimBackend(gpu, config_));
    }

  private:
    const SimConfig config_;
};

}  // namespace

SimConfig sim_config_from_env() {
    SimConfig config;
    const char* text = std::getenv("VRAMSWAP_SIM");
    std::string_view rest = text == nullptr ? std::string_view{} : std::string_view{text};
    while (!rest.empty()) {
        const auto comma = rest.find(',');
        const std::string_view item = rest.substr(0, comma);
        rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
        const auto equals = item.find('=');
        if (equals == std::string_view::npos)
            log_warning("VRAMSWAP_SIM: '{}' is not KEY=VALUE", item);
        else
            apply_setting(config, item.substr(0, equals), item.substr(equals + 1));
    }
    return config;
}

std::unique_ptr<Driver> make_sim_driver(SimConfig config) {
    return std::make_unique<SimDriver>(std::move(config));
}

}  // namespace vramswap
