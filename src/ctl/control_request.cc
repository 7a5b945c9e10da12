// SPDX-License-Identifier: MIT
#include "ctl/control_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace vramswap {
namespace {

using Json = nlohmann::json;
using Op = ControlRequest::Op;

struct Operation {
    Op op;
    const char* name;
    bool has_vram;
    bool has_holder;
};
constexpr std::size_t kSelectorMax = 64;
constexpr std::array kOperations{
    Operation{Op::status, "status", false, false}, Operation{Op::stop, "stop", false, false},
    Operation{Op::resize, "resize", true, false}, Operation{Op::yield, "yield", true, true}};

Error refusal(std::string message) {
    return {Errc::usage, 0, std::move(message),
            "The worker may be of another version than this command: bring the device down and up again"};
}

/// What is repeated to the sender: a few letters, so that a message can always be written.
std::string quoted(const std::string& word) {
    const bool plain =
        word.size() <= 32 && std::ranges::all_of(word, [](unsigned char c) { return c > ' ' && c < 0x7f; });
    return plain ? fmt::format(" '{}'", word) : std::string{};
}

Result<std::uint64_t> number_up_to(const Json& value, std::uint64_t most, const char* field) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > most)
        return refusal(fmt::format("'{}' of the request is not a number from 0 to {}", field, most));
    return value.get<std::uint64_t>();
}

Result<const Operation*> operation_of(const Json& request) {
    const auto op = request.is_object() ? request.find("op") : request.end();
    if (op == request.end() || !op->is_string()) return refusal("the request names no operation");
    const auto& name = op->get_ref<const std::string&>();
    const auto* found =
        std::ranges::find_if(kOperations, [&name](const Operation& o) { return name == o.name; });
    if (found == kOperations.end()) return refusal(fmt::format("unknown request{}", quoted(name)));
    return found;
}

}  // namespace

std::string to_json(const ControlRequest& request) {
    const auto& operation =
        *std::ranges::find_if(kOperations, [&](const Operation& o) { return o.op == request.op; });
    Json j{{"op", operation.name}};
    if (operation.has_vram) j["bytes"] = request.vram ? Json(request.vram->n) : Json(nullptr);
    if (operation.has_vram && !request.gpu.empty()) j["gpu"] = request.gpu;
    if (operation.has_holder) j["pid"] = request.holder;
    return j.dump();
}

Result<ControlRequest> parse_control_request(std::string_view text) {
    const Json j = Json::parse(text, nullptr, false);
    const auto operation = operation_of(j);
    if (!operation) return operation.error();
    const Operation& o = **operation;
    ControlRequest request;
    request.op = o.op;
    for (const auto& [key, value] : j.items()) {
        if (key == "op") continue;
        if (key == "bytes" && o.has_vram) {
            if (value.is_null()) continue;
            const auto bytes = number_up_to(value, kRequestVramMax.n, "bytes");
            if (!bytes) return bytes.error();
            request.vram = Bytes{*bytes};
        } else if (key == "gpu" && o.has_vram) {
            if (!value.is_string() || value.get_ref<const std::string&>().size() > kSelectorMax)
                return refusal("'gpu' of the request is no selector");
            request.gpu = value.get<std::string>();
        } else if (key == "pid" && o.has_holder) {
            const auto pid = number_up_to(value, static_cast<std::uint64_t>(kPidMax), "pid");
            if (!pid) return pid.error();
            request.holder = static_cast<pid_t>(*pid);
        } else {
            return refusal(fmt::format("the request '{}' has no field{}", o.name, quoted(key)));
        }
    }
    if (o.has_vram && !j.contains("bytes"))
        return refusal(fmt::format("the request '{}' lacks 'bytes'", o.name));
    return request;
}

}  // namespace vramswap
