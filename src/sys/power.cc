// SPDX-License-Identifier: MIT
#include "sys/power.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "sys/process.h"
#include "sys/text.h"

namespace vramswap {
namespace {

namespace fs = std::filesystem;

/// Empty if it cannot be read: drivers lack files, and refuse to read others while a battery is taken out.
std::string word_of(const fs::path& file) {
    const Result<std::string> content = read_small_file(file.string());
    return content ? std::string(text::trim(*content)) : std::string();
}

PowerSupply read_supply(const fs::path& directory) {
    return {.type = word_of(directory / "type"),
            .scope = word_of(directory / "scope"),
            .online = word_of(directory / "online"),
            .status = word_of(directory / "status"),
            .present = word_of(directory / "present")};
}

bool is_battery(const PowerSupply& supply) {
    return (supply.type == "Battery" || supply.type == "UPS") && supply.present != "0";
}

bool is_on(const PowerSupply& supply) {
    return !supply.online.empty() && supply.online != "0";
}

}  // namespace

PowerState judge_power(const std::vector<PowerSupply>& supplies) {
    const auto any = [&](auto holds) {
        return std::ranges::any_of(
            supplies, [&](const PowerSupply& supply) { return supply.scope != "Device" && holds(supply); });
    };
    const auto any_battery = [&](std::string_view status) {
        return any([&](const PowerSupply& s) { return is_battery(s) && s.status == status; });
    };
    if (!any(is_battery)) return PowerState::mains;
    // A charger may be too weak: then the battery gets empty beside it, slowly.
    if (any([](const PowerSupply& s) { return s.type == "Mains" && is_on(s); })) return PowerState::mains;
    // Before other chargers: a USB port that feeds a telephone is on, too. And of two batteries one may
    // charge the other.
    if (any_battery("Discharging")) return PowerState::battery;
    if (any([](const PowerSupply& s) { return !is_battery(s) && is_on(s); })) return PowerState::mains;
    if (any_battery("Charging") || any_battery("Not charging")) return PowerState::mains;
    // Some firmware calls a battery full for a while after the plug was pulled.
    if (any([](const PowerSupply& s) { return s.type == "Mains" && s.online == "0"; }))
        return PowerState::battery;
    return any_battery("Full") ? PowerState::mains : PowerState::unknown;
}

PowerState read_power(const SysRoot& root) {
    std::error_code error;
    fs::directory_iterator directory(root.at("/sys/class/power_supply"), error);
    if (error == std::errc::no_such_file_or_directory) return PowerState::mains;
    std::vector<PowerSupply> supplies;
    for (; !error && directory != fs::directory_iterator(); directory.increment(error))
        supplies.push_back(read_supply(directory->path()));
    return error ? PowerState::unknown : judge_power(supplies);
}

std::string_view to_string(PowerState state) {
    switch (state) {
        case PowerState::mains:
            return "mains";
        case PowerState::battery:
            return "battery";
        case PowerState::unknown:
            break;
    }
    return "unknown";
}

}  // namespace vramswap
