// SPDX-License-Identifier: MIT
#include "cli/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "ctl/runtime_dir.h"
#include "ctl/socket.h"
#include "sys/process.h"
#include "sys/spawn.h"

namespace vramswap {
namespace {

constexpr int kCallTimeoutMs = 10'000;
constexpr int kStopTimeoutMs = 60'000;

}  // namespace

Result<RunningDevice> launch_device(const DeviceConfig& config) {
    auto config_fd = text_in_memfd("vramswap-config", to_json(config));
    if (!config_fd) return std::move(config_fd).error();
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return sys_error("cannot make a pipe");
    const UniqueFd word(ends[0]);
    UniqueFd word_end(ends[1]);
    const DeviceDir dir = device_dir(config.name);
    auto lock = claim(dir);
    if (!lock) return std::move(lock).error();
    auto guardian = spawn_self({{"internal-guardian", config.name},
                                {lock->get(), word_end.get(), config_fd->get()},
                                SpawnSession::detached,
                                -1});
    word_end.reset();
    if (!guardian) {
        remove_dir(dir);
        return std::move(guardian).error();
    }
    lock->reset();  // the guardian's copy holds it
    auto text = read_all(word.get());
    if (text && !text->empty() && !is_error_json(*text)) return RunningDevice{config.name, *text, *guardian};
    ::waitpid(*guardian, nullptr, 0);
    if (!text || text->empty())
        return Error{Errc::failed, 0,
                     fmt::format("device {} did not come up: its guardian died", config.name)};
    return parse_error(*text, "the worker failed");
}

Result<void> start_swapping(const RunningDevice& running, int priority) {
    return start_swapping(running.device, running.name, {priority, SwapDiscard::both});
}

Result<void> start_swapping(const std::string& path, const std::string& label, const SwapOnOptions& options) {
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_DIRECT));
    if (!fd) return sys_error(fmt::format("cannot open {}", path));
    const off_t size = ::lseek(fd.get(), 0, SEEK_END);
    auto uuid = make_uuid();
    if (!uuid) return std::move(uuid).error();
    if (auto written = write_swap_header(fd.get(), {static_cast<std::uint64_t>(size)},
                                         label.substr(0, kSwapLabelChars), *uuid);
        !written)
        return std::move(written).error().in(path);
    return swap_on(path, options);
}

Result<void> stop_swapping(const std::string& device) {
    auto areas = read_swaps();
    auto memory = read_meminfo();
    if (!areas) return std::move(areas).error();
    if (!memory) return std::move(memory).error();
    const SwapoffCheck check = check_swapoff(*memory, *areas, device);
    if (check.verdict == SwapoffVerdict::not_in_use) return {};
    if (check.verdict == SwapoffVerdict::too_little)
        return Error{
            Errc::no_memory, 0,
            fmt::format("{} holds {} in swap, and RAM and other swap have room for {}: {} is missing", device,
                        format_size(check.needed), format_size(check.ram_room + check.swap_room),
                        format_size(check.missing)),
            "End some programs or add other swap, then try again. Nothing was changed"};
    return swap_off(device);
}

Result<DeviceStatus> serving_device(const std::string& name) {
    if (auto fine = check_name(name); !fine) return std::move(fine).error();
    auto status = device_status(name);
    if (!status || status->state == "serving" || status->state == "armed") return status;
    return Error{Errc::failed, 0, fmt::format("device {} is {}: nobody can be asked", name, status->state),
                 status->problem};
}

Result<DeviceStatus> ask_device(const std::string& name, const ControlRequest& request) {
    auto answer = control_call(device_dir(name).socket(), to_json(request), kCallTimeoutMs);
    if (!answer) return std::move(answer).error();
    return parse_device_status(*answer);
}

Result<void> remove_device(const std::string& name) {
    const DeviceDir dir = device_dir(name);
    if (!is_held(dir)) {
        remove_dir(dir);
        return {};
    }
    auto answer =
        control_call(dir.socket(), to_json(ControlRequest{ControlRequest::Op::stop}), kStopTimeoutMs);
    if (!answer && answer.error().code != Errc::not_found) return std::move(answer).error();
    if (!answer) {  // the worker is dead: end its guardian
        auto status = device_status(name);
        if (!status) return std::move(status).error();
        if (status->guardian_pid <= 0 || ::kill(status->guardian_pid, SIGTERM) != 0)
            return sys_error(fmt::format("cannot end the guardian of {}", name));
    }
    if (auto gone = wait_until_free(dir, kStopTimeoutMs); !gone) return gone;
    remove_dir(dir);  // what remains if the guardian was dead
    return {};
}

Result<DeviceStatus> device_status(const std::string& name) {
    return device_status(name, kCallTimeoutMs);
}

Result<DeviceStatus> device_status(const std::string& name, int timeout_ms) {
    const DeviceDir dir = device_dir(name);
    const bool held = is_held(dir);
    Result<std::string> text = Error{Errc::not_found, 0, "not running"};
    if (held) text = control_call(dir.socket(), to_json(ControlRequest{}), timeout_ms);
    const bool silent = !text && text.error().sys == ETIMEDOUT;
    if (!text) text = read_small_file(dir.state());
    auto status = text ? parse_device_status(*text) : Result<DeviceStatus>(Error{});
    if (!status) {
        if (!held)
            return Error{Errc::not_found, 0, fmt::format("no device '{}'", name),
                         "`vramswap status` lists what there is"};
        status = DeviceStatus{};
        status->name = name;
        status->state = "starting";
    }
    if (silent) {
        status->state = "silent";
        status->problem = fmt::format("its worker has not answered within {} s: busy or hung",
                                      static_cast<double>(timeout_ms) / 1000);
    }
    if (!held) {
        status->state = "stale";
        status->problem = fmt::format("its processes are dead; `vramswap down {}` cleans up", name);
        status->guardian_pid = status->worker_pid = 0;
    }
    if (const auto areas = read_swaps(); areas)
        if (const SwapArea* area = find_swap(*areas, status->device); area != nullptr) {
            status->swap = true;
            status->swap_used = area->used;
            status->priority = area->priority;
        }
    return status;
}

}  // namespace vramswap
