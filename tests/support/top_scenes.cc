// SPDX-License-Identifier: MIT
#include "support/top_scenes.h"

#include <algorithm>
#include <cmath>

namespace vramswap::test {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kWatchedS = 200;

/// A wave between 0 and 1.
double wave(double x) {
    return 0.5 - 0.5 * std::cos(x);
}

/// What a second of swapping does: bursts, each with its own height; the others take memory in steps.
void live_through(DeviceStatus& s, std::uint64_t second) {
    const double t = static_cast<double>(second);
    const auto in = static_cast<std::uint64_t>(12400 * wave(t / 7) * wave(t / 40));
    const auto out = second % 60 < 25 ? static_cast<std::uint64_t>(3100 * (1 + std::sin(t / 3))) : 0;
    s.pages_read += in;
    s.pages_written += out;
    s.read_latency[28] += in * 9 / 10;
    s.read_latency[34] += in / 10;
    s.write_latency[24] += out;
    s.moved_out = s.moved_out + Bytes{second % 60 < 25 ? 120'000'000u : 0u};
    if (s.size > gib(1)) s.vram = mib(128 * (23 - std::min<std::uint64_t>(second / 60, 3)));
    s.others_memory = gib(52 + 3 * std::min<std::uint64_t>(second / 60, 3));
    s.gpu_free = s.gpu_total - s.others_memory - s.vram - mib(700);
    s.gpus = {{s.gpu, s.gpu_name, s.vram, s.vram_target, s.reserve, s.gpu_total, s.gpu_free, s.others_memory,
               s.others_sm_percent, s.reason}};
    if (s.gpu != "cuda:0,cuda:1") return;
    s.gpus[0].selector = "cuda:0";
    s.gpus.push_back({"cuda:1",
                      "NVIDIA L40S",
                      gib(6),
                      gib(6),
                      gib(3),
                      gib(45),
                      gib(39),
                      {},
                      0,
                      "enough for what is stored"});
}

}  // namespace

DeviceStatus busy_device(std::string name) {
    DeviceStatus s;
    s.name = std::move(name);
    s.state = "armed";
    s.device = "/dev/ublkb0";
    s.frontend = "ublk";
    s.gpu = "cuda:0";
    s.gpu_name = "NVIDIA H100 80GB HBM3";
    s.mode = "copy";
    s.guardian_pid = 4711;
    s.worker_pid = 4712;
    s.size = gib(8);
    s.stored = mib(3277);
    s.vram = mib(2944);
    s.ram = mib(58);
    s.staged = mib(30);
    s.vram_target = mib(2048);
    s.spilled = mib(612);
    s.spill_capacity = gib(8);
    s.spill_on_disk = mib(640);
    s.spill_place = "/var/lib/vramswap";
    s.reason = "others use the GPU's memory";
    s.reserve = gib(4);
    s.move_rate_max = 1u << 30;
    s.gpu_total = gib(80);
    s.others_sm_percent = 87;
    s.power = "mains";
    s.gpu_processes = {{815, "python3", gib(38)}, {1204, "ollama", gib(21)}, {99, "Xorg", mib(182)}};
    s.read_latency.assign(64, 0);
    s.write_latency.assign(64, 0);
    s.swap = true;
    s.swap_used = mib(3174);
    s.priority = 32767;
    return s;
}

namespace {

DeviceStatus small_device() {
    DeviceStatus s = busy_device("small");
    s.device = "/dev/loop0";
    s.frontend = "loop";
    s.gpu = "sim:0";
    s.gpu_name = "simulated GPU in RAM";
    s.gpu_total = s.spill_capacity = s.spilled = s.stored = s.swap_used = {};
    s.size = mib(512);
    s.vram = mib(256);
    s.reason.clear();
    s.power.clear();
    s.gpu_processes.clear();
    s.state = "serving";
    s.swap = false;
    return s;
}

DeviceStatus device_on_two_gpus() {
    DeviceStatus s = busy_device("pair");
    s.gpu = "cuda:0,cuda:1";
    s.gpu_name = "NVIDIA H100 80GB HBM3, NVIDIA L40S";
    s.reason = "cuda:0: others use the GPU's memory; cuda:1: enough for what is stored";
    return s;
}

DeviceStatus dead_device() {
    DeviceStatus s;
    s.name = "dead";
    s.state = "worker-dead";
    s.problem =
        "the worker was killed by signal 9 (Killed); pages that were on the GPU cannot be read. Run "
        "`vramswap down dead`";
    s.size = gib(4);
    s.worker_pid = 1;
    return s;
}

/// Watched every second; at the last look only those that `stay`.
TopModel watched(std::vector<DeviceStatus> devices, std::size_t stay) {
    TopModel model;
    for (std::uint64_t second = 0; second < kWatchedS; ++second) {
        for (auto& device : devices)
            if (device.worker_pid > 1) live_through(device, second);
        if (second == kWatchedS - 1) devices.resize(stay);
        model.add((second + 1) * kSecond, devices);
    }
    return model;
}

DeviceStatus device_in_trouble() {
    DeviceStatus s = busy_device("hurt");
    s.read_errors = 2;
    s.move_errors = 7;
    s.spill_problem = "The disk of /var/lib/vramswap has less than a tenth of its space free.";
    s.set_by_hand = "yield 2G";
    s.reason = "CANNOT GIVE BACK: the spill has no room for what is stored";
    s.move_rate_max = 0;
    return s;
}

}  // namespace

const std::vector<std::string>& top_scenes() {
    static const std::vector<std::string> names{"none", "busy", "three", "pair", "trouble"};
    return names;
}

TopModel top_scene(const std::string& name) {
    if (name == "none") return watched({}, 0);
    if (name == "busy") return watched({busy_device("vram0")}, 1);
    if (name == "three") return watched({busy_device("vram0"), busy_device("vram1"), small_device()}, 3);
    if (name == "pair") return watched({device_on_two_gpus()}, 1);
    return watched({device_in_trouble(), dead_device(), busy_device("left")}, 2);
}

}  // namespace vramswap::test
