// SPDX-License-Identifier: MIT
#include "ctl/messages.h"

#include <nlohmann/json.hpp>
#include <type_traits>

namespace vramswap {
namespace {

using Json = nlohmann::json;

/// Runs a conversion; any surprise in the text becomes an Error.
template <typename Convert>
auto guarded(std::string_view text, const char* what, Convert convert) -> Result<decltype(convert(Json()))> {
    try {
        return convert(Json::parse(text));
    } catch (const Json::exception& e) {
        return Error{Errc::failed, 0, std::string("cannot understand ") + what + ": " + e.what()};
    }
}

/// Lists the fields of a message once; used to write and to read it.
template <typename C, typename Visit>
requires std::is_same_v<std::remove_const_t<C>, DeviceConfig>
void fields(C& c, Visit visit) {
    visit("name", c.name);
    visit("size_bytes", c.size);
    visit("gpu", c.gpu);
    visit("frontend", c.frontend);
    visit("threads", c.threads);
    visit("mode", c.mode);
    visit("segment_bytes", c.segment);
    visit("stage_bytes", c.stage);
    visit("headroom", c.headroom);
    visit("vram_max", c.vram_max);
    visit("spill", c.spill);
    visit("spill_size_bytes", c.spill_size);
    visit("swap_rate_max_bytes", c.swap_rate_max);
}

template <typename P, typename Visit>
requires std::is_same_v<std::remove_const_t<P>, GpuProcess>
void fields(P& p, Visit visit) {
    visit("pid", p.pid);
    visit("name", p.name);
    visit("memory_bytes", p.memory);
}

template <typename G, typename Visit>
requires std::is_same_v<std::remove_const_t<G>, GpuPart>
void fields(G& g, Visit visit) {
    visit("selector", g.selector);
    visit("name", g.name);
    visit("vram_bytes", g.vram);
    visit("vram_target_bytes", g.target);
    visit("reserve_bytes", g.reserve);
    visit("total_bytes", g.total);
    visit("free_bytes", g.free);
    visit("others_memory_bytes", g.others_memory);
    visit("others_sm_percent", g.others_sm_percent);
    visit("reason", g.reason);
}

template <typename S, typename Visit>
requires std::is_same_v<std::remove_const_t<S>, DeviceStatus>
void fields(S& s, Visit visit) {
    visit("name", s.name);
    visit("state", s.state);
    visit("problem", s.problem);
    visit("device", s.device);
    visit("frontend", s.frontend);
    visit("gpu", s.gpu);
    visit("gpu_name", s.gpu_name);
    visit("gpus", s.gpus);
    visit("mode", s.mode);
    visit("guardian_pid", s.guardian_pid);
    visit("worker_pid", s.worker_pid);
    visit("worker_deaths", s.worker_deaths);
    visit("size_bytes", s.size);
    visit("stored_bytes", s.stored);
    visit("vram_bytes", s.vram);
    visit("dirty_bytes", s.dirty);
    visit("ram_bytes", s.ram);
    visit("pages_read", s.pages_read);
    visit("pages_written", s.pages_written);
    visit("pages_discarded", s.pages_discarded);
    visit("zero_pages_written", s.zero_pages_written);
    visit("pages_read_stage", s.pages_read_stage);
    visit("pages_read_gpu", s.pages_read_gpu);
    visit("pages_flushed", s.pages_flushed);
    visit("reread_pages", s.reread_pages);
    visit("read_errors", s.read_errors);
    visit("writes_refused", s.writes_refused);
    visit("flush_errors", s.flush_errors);
    visit("staged_bytes", s.staged);
    visit("vram_target_bytes", s.vram_target);
    visit("segment_bytes", s.segment);
    visit("spilled_bytes", s.spilled);
    visit("spill_capacity_bytes", s.spill_capacity);
    visit("spill_on_disk_bytes", s.spill_on_disk);
    visit("spill_place", s.spill_place);
    visit("spill_problem", s.spill_problem);
    visit("moved_out_bytes", s.moved_out);
    visit("moved_back_bytes", s.moved_back);
    visit("compacted_bytes", s.compacted);
    visit("compacting_ns", s.compacting_ns);
    visit("pages_read_spill", s.pages_read_spill);
    visit("pages_written_spill", s.pages_written_spill);
    visit("move_errors", s.move_errors);
    visit("reason", s.reason);
    visit("set_by_hand", s.set_by_hand);
    visit("reserve_bytes", s.reserve);
    visit("move_rate_max", s.move_rate_max);
    visit("gpu_total_bytes", s.gpu_total);
    visit("gpu_free_bytes", s.gpu_free);
    visit("others_memory_bytes", s.others_memory);
    visit("others_sm_percent", s.others_sm_percent);
    visit("power", s.power);
    visit("gpu_processes", s.gpu_processes);
    visit("read_latency", s.read_latency);
    visit("write_latency", s.write_latency);
    visit("swap", s.swap);
    visit("swap_used_bytes", s.swap_used);
    visit("priority", s.priority);
}

template <typename G, typename Visit>
requires std::is_same_v<std::remove_const_t<G>, ProbedGpu>
void fields(G& g, Visit visit) {
    visit("selector", g.selector);
    visit("backend", g.backend);
    visit("name", g.name);
    visit("uuid", g.uuid);
    visit("pci", g.pci);
    visit("driver", g.driver);
    visit("kind", g.kind);
    visit("refusal", g.refusal);
    visit("total_bytes", g.total);
    visit("free_bytes", g.free);
    visit("display_attached", g.display_attached);
}

template <typename B, typename Visit>
requires std::is_same_v<std::remove_const_t<B>, BenchRequest>
void fields(B& b, Visit visit) {
    visit("gpu", b.gpu);
    visit("seconds", b.seconds);
    visit("mode", b.mode);
    visit("extent", b.extent);
    visit("threads", b.threads);
    visit("mergers", b.mergers);
    visit("only", b.only);
}

template <typename P, typename Visit>
requires std::is_same_v<std::remove_const_t<P>, ProbedPart>
void fields(P& p, Visit visit) {
    visit("name", p.name);
    visit("problem", p.problem);
}

template <typename T>
Json list_of(const std::vector<T>& items);
template <typename T>
void read_list(const Json& list, std::vector<T>& items);

/// A list of messages, not of plain values.
template <typename T>
constexpr bool is_list =
    std::is_same_v<T, std::vector<GpuProcess>> || std::is_same_v<T, std::vector<GpuPart>>;

template <typename T>
Json object_of(const T& message) {
    Json j = Json::object();
    fields(message, [&j](const char* key, const auto& value) {
        using Value = std::remove_cvref_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, Bytes>)
            j[key] = value.n;
        else if constexpr (is_list<Value>)
            j[key] = list_of(value);
        else
            j[key] = value;
    });
    return j;
}

/// A worker may be older than the command that asks it, and the other way round: a status without some field
/// is still one.
template <typename T>
constexpr bool may_lack_fields = std::is_same_v<T, DeviceStatus> || std::is_same_v<T, GpuPart>;

template <typename T>
T read_object(const Json& j) {
    T message;
    fields(message, [&j](const char* key, auto& value) {
        if (may_lack_fields<T> && std::string_view(key) != "name" && !j.contains(key)) return;
        using Value = std::remove_cvref_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, Bytes>)
            value.n = j.at(key).template get<std::uint64_t>();
        else if constexpr (is_list<Value>)
            read_list(j.at(key), value);
        else
            j.at(key).get_to(value);
    });
    return message;
}

template <typename T>
Json list_of(const std::vector<T>& items) {
    Json list = Json::array();
    for (const auto& item : items) list.push_back(object_of(item));
    return list;
}

template <typename T>
void read_list(const Json& list, std::vector<T>& items) {
    for (const auto& item : list) items.push_back(read_object<T>(item));
}

Json error_object(const Error& e) {
    return {{"code", static_cast<int>(e.code)}, {"sys", e.sys}, {"message", e.message}, {"hint", e.hint}};
}

void read_error(const Json& j, Error& e) {
    const int code = j.at("code").get<int>();
    e.code = code >= 0 && code <= static_cast<int>(Errc::gpu_lost) ? static_cast<Errc>(code) : Errc::failed;
    j.at("sys").get_to(e.sys);
    j.at("message").get_to(e.message);
    j.at("hint").get_to(e.hint);
}

}  // namespace

std::string to_json(const DeviceConfig& config) {
    return object_of(config).dump();
}

Result<DeviceConfig> parse_device_config(std::string_view text) {
    return guarded(text, "the device configuration", read_object<DeviceConfig>);
}

std::string to_json(const DeviceStatus& status) {
    return object_of(status).dump();
}

Result<DeviceStatus> parse_device_status(std::string_view text) {
    auto status = guarded(text, "a device's status", read_object<DeviceStatus>);
    if (!status || !status->gpus.empty() || status->gpu.empty()) return status;
    // A worker that knows but one GPU.
    DeviceStatus& s = *status;
    s.gpus.push_back({s.gpu, s.gpu_name, s.vram, s.vram_target, s.reserve, s.gpu_total, s.gpu_free,
                      s.others_memory, s.others_sm_percent, s.reason});
    return status;
}

std::string to_json(const Probe& p) {
    return Json{{"gpus", list_of(p.gpus)},
                {"backends", list_of(p.backends)},
                {"frontends", list_of(p.frontends)},
                {"selected_gpus", p.selected_gpus},
                {"selected_frontend", p.selected_frontend},
                {"problem", error_object(p.problem)}}
        .dump();
}

Result<Probe> parse_probe(std::string_view text) {
    return guarded(text, "what the probe found", [](const Json& j) {
        Probe p;
        read_list(j.at("gpus"), p.gpus);
        read_list(j.at("backends"), p.backends);
        read_list(j.at("frontends"), p.frontends);
        j.at("selected_gpus").get_to(p.selected_gpus);
        j.at("selected_frontend").get_to(p.selected_frontend);
        read_error(j.at("problem"), p.problem);
        return p;
    });
}

std::string to_json(const ProbedSpill& spill) {
    return Json{{"path", spill.path},
                {"is_device", spill.is_device},
                {"room_bytes", spill.room.n},
                {"remark", spill.remark},
                {"problem", error_object(spill.problem)}}
        .dump();
}

Result<ProbedSpill> parse_probed_spill(std::string_view text) {
    return guarded(text, "what the probe found of a spill", [](const Json& j) {
        ProbedSpill spill;
        j.at("path").get_to(spill.path);
        j.at("is_device").get_to(spill.is_device);
        j.at("room_bytes").get_to(spill.room.n);
        j.at("remark").get_to(spill.remark);
        read_error(j.at("problem"), spill.problem);
        return spill;
    });
}

std::string to_json(const BenchRequest& request) {
    return object_of(request).dump();
}

Result<BenchRequest> parse_bench_request(std::string_view text) {
    return guarded(text, "what to measure", read_object<BenchRequest>);
}

std::string error_json(const Error& error) {
    return Json{{"error", error_object(error)}}.dump();
}

Error parse_error(std::string_view text, std::string_view fallback) {
    Error error{Errc::failed, 0, std::string(fallback)};
    try {
        read_error(Json::parse(text).at("error"), error);
    } catch (const Json::exception&) {  // no such object: the fallback stands
    }
    return error;
}

bool is_error_json(std::string_view text) {
    const Json j = Json::parse(text, nullptr, false);
    return j.is_object() && j.contains("error");
}

}  // namespace vramswap
