// SPDX-License-Identifier: MIT
#include "support/policy_trace.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <vector>

#include "support/policy_world.h"

namespace vramswap::test {
namespace {

constexpr double kSecond = 1e9;

/// "5", "2.5": seconds or a number.
std::optional<double> number(std::string_view text) {
    double value = 0;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (ec != std::errc{} || end != text.data() + text.size()) return {};
    return value;
}

std::optional<Bytes> bytes(std::string_view text) {
    if (text == "0") return Bytes{0};
    const auto spec = parse_size(text, "size");
    if (!spec || spec->kind != SizeSpec::Kind::bytes) return {};
    return Bytes{spec->amount};
}

std::uint64_t to_ns(double seconds) {
    return static_cast<std::uint64_t>(seconds * kSecond + 0.5);
}

/// One "key=value", "key+=value" or "key-=value".
struct Setting {
    std::string key;
    char sign = '=';
    std::string value;
};

struct Event {
    std::uint64_t when_ns = 0;
    int line = 0;
    std::vector<Setting> settings;
};

struct Trace {
    std::vector<std::pair<int, Setting>> config;
    std::vector<Event> events;
    std::uint64_t end_ns = 0;
};

using Setter = std::function<bool(const Setting&)>;
using Setters = std::map<std::string, Setter, std::less<>>;

Setter sets(Bytes& field) {
    return [&field](const Setting& s) {
        const auto value = bytes(s.value);
        if (!value) return false;
        if (s.sign == '=') field = *value;
        if (s.sign == '+') field = field + *value;
        if (s.sign == '-') field = {field.n - std::min(field.n, value->n)};
        return true;
    };
}
Setter sets(std::optional<Bytes>& field) {
    return [&field](const Setting& s) {
        field = bytes(s.value);
        return field || s.value == "none";
    };
}
template <typename Number>
Setter sets_number(Number& field, double scale = 1) {
    return [&field, scale](const Setting& s) {
        const auto value = number(s.value);
        if (value) field = static_cast<Number>(*value * scale);
        return value.has_value();
    };
}
Setter sets_rate(std::uint64_t& field) {
    return [&field](const Setting& s) {
        const auto value = bytes(s.value);
        if (value) field = value->n;
        return value.has_value();
    };
}
template <typename Enum>
Setter sets_one_of(Enum& field, std::map<std::string, Enum, std::less<>> names) {
    return [&field, names = std::move(names)](const Setting& s) {
        const auto found = names.find(s.value);
        if (found != names.end()) field = found->second;
        return found != names.end();
    };
}
Setter sets_percent(std::optional<std::uint32_t>& field) {
    return [&field](const Setting& s) {
        const auto value = number(s.value);
        field.reset();
        if (value) field = static_cast<std::uint32_t>(*value);
        return value || s.value == "unknown";
    };
}

Setters config_setters(PolicyConfig& c) {
    return {
        {"segment", sets(c.segment)},
        {"headroom",
         [&c](const Setting& s) {
             const auto spec = parse_size(s.value, "headroom");
             if (spec) c.headroom = *spec;
             return spec.has_value();
         }},
        {"min", sets(c.target_min)},
        {"max", sets(c.target_max)},
        {"calm_s", sets_number(c.calm_ns, kSecond)},
        {"swap_rate_beside_others", sets_rate(c.swap_rate_beside_others)},
        {"mode", sets_one_of(c.mode, {{"auto", ModeChoice::automatic}, {"copy", ModeChoice::always_copy}})},
        {"on_battery",
         sets_one_of(c.on_battery, {{"release", OnBattery::release}, {"ignore", OnBattery::ignore}})},
    };
}

Setters world_setters(PolicyWorld& w) {
    Snapshot& s = w.seen;
    return {
        {"total", sets(s.total)},
        {"others", sets(w.others)},
        {"ours", sets(s.ours)},
        {"stored", sets(s.stored)},
        {"spill_room", sets(s.spill_room)},
        {"ram", sets(s.ram_available)},
        {"by_hand", sets(s.manual_target)},
        {"yield", sets(s.yield_max)},
        {"free", sets_one_of(s.free_known, {{"known", true}, {"unknown", false}})},
        {"display", sets_one_of(s.display, {{"yes", true}, {"no", false}})},
        {"power", sets_one_of(s.power, {{"mains", PowerSource::mains},
                                        {"battery", PowerSource::battery},
                                        {"unknown", PowerSource::unknown}})},
        {"sm", sets_percent(s.others_sm_percent)},
        {"move_rate", sets_rate(s.move_rate)},
        {"in", sets_number(s.pages_in_per_s)},
        {"out", sets_number(s.pages_out_per_s)},
        {"queue", sets_number(s.queue_pages)},
        {"psi", sets_number(s.ram_psi_some_avg10)},
        {"late_s", sets_number(w.sample_late_ns, kSecond)},
    };
}

/// Empty if unknown or no value of this key.
bool apply(const Setters& setters, const Setting& setting) {
    const auto found = setters.find(setting.key);
    return found != setters.end() && found->second(setting);
}

std::optional<Setting> parse_setting(const std::string& word) {
    const auto equals = word.find('=');
    if (equals == std::string::npos || equals == 0) return {};
    Setting setting{word.substr(0, equals), '=', word.substr(equals + 1)};
    if (setting.key.back() == '+' || setting.key.back() == '-') {
        setting.sign = setting.key.back();
        setting.key.pop_back();
    }
    return setting;
}

/// Adds what a line says. False if it is not understood.
bool parse_line(const std::string& text, int line, Trace& trace) {
    std::istringstream words(text.substr(0, text.find('#')));
    std::string word;
    if (!(words >> word)) return true;
    const bool config = word == "config";
    const bool end = word == "end";
    if (end && !(words >> word)) return false;
    const auto when = config ? 0 : number(word);
    if (!when) return false;
    if (end) {
        trace.end_ns = to_ns(*when);
        return true;
    }
    Event event{to_ns(*when), line, {}};
    double times = 1;
    double every_s = 0;
    while (words >> word) {
        const auto setting = parse_setting(word);
        if (!setting) return false;
        if (setting->key == "times")
            times = number(setting->value).value_or(0);
        else if (setting->key == "every_s")
            every_s = number(setting->value).value_or(0);
        else if (config)
            trace.config.emplace_back(line, *setting);
        else
            event.settings.push_back(*setting);
    }
    for (int n = 0; !config && n < static_cast<int>(times); ++n) {
        trace.events.push_back(event);
        event.when_ns += to_ns(every_s);
    }
    return times >= 1;
}

std::string rate_text(std::uint64_t rate) {
    return rate == kNoLimit ? "full" : rate == 0 ? "none" : format_size({rate}) + "/s";
}

std::string plan_text(const Plan& plan) {
    std::string text = "target=" + std::to_string(plan.target.n >> 20) + "M";
    text += " mode=" + std::string(to_string(plan.mode)) + " move=" + rate_text(plan.move_rate);
    if (plan.swap_rate_max != kNoLimit) text += " swap=" + rate_text(plan.swap_rate_max);
    return text + " : " + std::string(to_string(plan.reason));
}

Error bad_line(const std::filesystem::path& file, int line) {
    return {Errc::usage, 0, file.filename().string() + ":" + std::to_string(line) + " is not understood"};
}

std::string run(const Trace& trace, PolicyWorld& world, std::size_t& next, const Setters& setters) {
    std::string plans;
    std::string last;
    for (; world.now_ns <= trace.end_ns; world.run(world.config.period_ns)) {
        for (; next < trace.events.size() && trace.events[next].when_ns <= world.now_ns; ++next)
            for (const Setting& setting : trace.events[next].settings)
                if (!apply(setters, setting)) return {};
        std::string text;
        if (world.lack().n > 0) {
            // As in the world: an allocation for which there is no room fails.
            text = "FAILED: others lack " + std::to_string(world.lack().n >> 20) + "M : ";
            world.others = world.others - world.lack();
        }
        text += plan_text(world.decide());
        if (text == last) continue;
        last = text;
        std::array<char, 32> when{};
        std::snprintf(when.data(), when.size(), "%7.2f ", static_cast<double>(world.now_ns) / kSecond);
        plans += when.data() + text + "\n";
    }
    return plans;
}

}  // namespace

Result<std::string> replay(const std::filesystem::path& file) {
    std::ifstream in(file);
    if (!in) return sys_error("cannot read " + file.string());
    Trace trace;
    std::string text;
    for (int line = 1; std::getline(in, text); ++line)
        if (!parse_line(text, line, trace)) return bad_line(file, line);
    std::stable_sort(trace.events.begin(), trace.events.end(),
                     [](const Event& a, const Event& b) { return a.when_ns < b.when_ns; });

    PolicyConfig config;
    const Setters config_keys = config_setters(config);
    for (const auto& [line, setting] : trace.config)
        if (!apply(config_keys, setting)) return bad_line(file, line);
    PolicyWorld world(config);
    std::size_t next = 0;
    std::string plans = run(trace, world, next, world_setters(world));
    if (plans.empty() && next < trace.events.size()) return bad_line(file, trace.events[next].line);
    return plans;
}

}  // namespace vramswap::test
