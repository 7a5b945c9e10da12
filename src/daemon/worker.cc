// SPDX-License-Identifier: MIT
// The worker: opens the GPUs and the spill, builds the store, serves the frontend. Its main thread is the
// control thread: it maintains the store and answers the control socket. A monitor's thread for each GPU
// watches it and tells the store how much of its VRAM to hold. It never calls swapoff(2).
#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>

#include "base/clock.h"
#include "base/log.h"
#include "ctl/control_request.h"
#include "ctl/messages.h"
#include "ctl/runtime_dir.h"
#include "ctl/socket.h"
#include "daemon/by_hand_orders.h"
#include "daemon/guardian_link.h"
#include "daemon/lifecycle.h"
#include "daemon/monitor/monitor.h"
#include "daemon/monitor/monitored_store.h"
#include "daemon/monitor/policy_setup.h"
#include "daemon/roles.h"
#include "front/frontend.h"
#include "gpu/drivers.h"
#include "store/page_store.h"
#include "sys/proc.h"
#include "sys/process.h"
#include "sys/spawn.h"
#include "sys/swap_area.h"

namespace vramswap {
namespace {

constexpr int kLinkFd = 3;
constexpr int kConfigFd = 4;
constexpr int kMaintenancePeriodMs = 1000;
constexpr std::string_view kOrdersKey = "orders";

class Worker {
  public:
    Worker(DeviceConfig config, GuardianLink& guardian)
        : config_(std::move(config)), dir_(device_dir(config_.name)), guardian_(guardian) {}

    /// Everything until the device exists; the order is that of the armed rule. On failure nothing stays
    /// behind.
    Result<void> start() {
        if (auto r = block_signals(); !r) return r;
        auto handover = guardian_.receive_handover();
        if (!handover) return std::move(handover).error();
        deaths_ = handover->deaths;
        const HeldFds held = std::move(handover->fds);
        if (auto r = open_gpus_and_store(held); !r) return r;
        if (auto r = make_monitors(); !r) return r;
        if (auto r = take_orders_again(held); !r)
            log_warning("what was ordered by hand is forgotten: {}", r.error().text());
        if (auto r = lock_memory(LockMode::on_fault); !r) return r;
        become(WorkerState::locked);
        auto control = ControlServer::listen(dir_.socket());
        if (!control) return std::move(control).error();
        control_ = std::make_unique<ControlServer>(std::move(*control));
        auto frontend = make_frontend(config_.frontend);
        if (!frontend) return std::move(frontend).error();
        frontend_ = std::move(*frontend);
        if (auto r = store_->start(); !r) return r;
        if (is_successor()) store_->will_be_followed();  // requests come at once
        const FrontendOptions options{config_.name, config_.threads, &guardian_};
        auto device =
            deaths_ == 0 ? frontend_->start(*store_, options) : frontend_->take_over(*store_, options, held);
        if (!device) return std::move(device).error();
        device_ = std::move(*device);
        for (auto& watch : watches_)
            if (auto r = watch.monitor->start(); !r) return r;
        become(WorkerState::serving);
        if (guardian_.keeps_frontend()) store_->will_be_followed();
        return guardian_.tell_ready(device_);
    }

    /// Another worker was before this one, and what that had stored is there.
    [[nodiscard]] bool is_successor() const { return deaths_ != 0; }

    /// Until it is told to stop and the device is free.
    void serve() {
        while (state_ != WorkerState::stopped) {
            std::array<pollfd, 5> events{pollfd{signals_.get(), POLLIN, 0}, pollfd{control_->fd(), POLLIN, 0},
                                         pollfd{store_->maintenance_fd(), POLLIN, 0},
                                         pollfd{guardian_gone_ ? -1 : guardian_.fd(), 0, 0},
                                         pollfd{by_hand_->fd(), POLLIN, 0}};
            if (::poll(events.data(), events.size(), kMaintenancePeriodMs) < 0) continue;
            if (events[0].revents != 0) take_signal();
            if (events[1].revents != 0)
                control_->serve_one([this](std::string_view request) { return answer(request); });
            if ((events[3].revents & (POLLHUP | POLLERR)) != 0) guardian_is_gone();
            if (!guardian_gone_ && store_->must_be_followed()) make_way();
            if (by_hand_->end_of_the_dead()) orders_have_changed();
            store_->maintain();
            frontend_->maintain();
            log_drain();
        }
    }

    /// What has to be done before the store goes. If the driver hangs, nothing may be destroyed that the
    /// monitor still uses: the process ends as it is, and the kernel frees all.
    void end() {
        for (auto& watch : watches_) {
            if (watch.monitor->stop() == Monitor::Ended::yes) continue;
            log_error(
                "the GPU's driver does not answer: device {} ends without giving its memory back in order",
                config_.name);
            log_drain();
            ::_exit(0);
        }
        watches_.clear();
        frontend_.reset();
        store_.reset();
        if (spill_ == nullptr) return;
        if (auto closed = spill_->close(); !closed)
            log_warning("cannot wipe the spill: {}", closed.error().text());
    }

  private:
    Result<void> block_signals() {
        sigset_t set;
        sigemptyset(&set);
        for (const int s : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, s);
        if (pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0) return sys_error("cannot block signals");
        signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
        if (!signals_) return sys_error("cannot make a signalfd");
        return {};
    }

    Result<void> open_gpus_and_store(const HeldFds& held) {
        drivers_ = all_drivers();
        const auto gpus = select_gpus(survey(drivers_), config_.gpu, SimFallback::never);
        if (!gpus) return gpus.error();
        std::vector<Backend*> backends;
        for (const GpuInfo& gpu : *gpus) {
            auto backend = open_gpu(drivers_, gpu);
            if (!backend) return std::move(backend).error();
            backends.push_back(backend->get());
            backends_.push_back(std::move(*backend));
        }
        if (auto opened = open_spill(held); !opened) return opened;
        StoreConfig store;
        store.spill = spill_.get();
        store.patience_ns = 2 * PolicyConfig{}.period_ns;
        store.size = config_.size;
        store.segment = config_.segment;
        store.stage = config_.stage;
        store.mode = config_.mode == "turbo" ? EngineMode::turbo : EngineMode::copy;
        auto made = deaths_ == 0 ? PageStore::create(std::move(backends), store, &guardian_)
                                 : PageStore::take_over(std::move(backends), store, &guardian_, held);
        if (!made) return std::move(made).error();
        store_ = std::move(*made);
        return {};
    }

    Result<void> open_spill(const HeldFds& held) {
        if (config_.spill.empty()) return {};
        SpillConfig config;
        config.path = config_.spill;
        config.size_max = config_.spill_size.n == 0 ? config_.size : config_.spill_size;
        auto spill =
            deaths_ == 0 ? Spill::open(config) : Spill::adopt(config, PageStore::spill_kept(held), {});
        if (!spill) return std::move(spill).error();
        spill_ = std::move(*spill);
        return {};
    }

    Result<void> make_monitors() {
        std::optional<EngineMode> mode;  // none: the policy's
        if (config_.mode != "auto") mode = config_.mode == "turbo" ? EngineMode::turbo : EngineMode::copy;
        std::vector<ByHandOrders::Gpu> gpus;
        for (std::uint32_t n = 0; n < backends_.size(); ++n) {
            const GpuInfo& gpu = backends_[n]->info();
            const auto policy = policy_config(config_, gpu);
            if (!policy) return policy.error();
            MonitorConfig config;
            config.policy = *policy;
            auto store = std::make_unique<MonitoredStore>(*store_, n, mode);
            auto monitor = std::make_unique<Monitor>(*backends_[n], *store, config);
            watches_.push_back({std::move(store), std::move(monitor)});
            gpus.push_back({gpu.selector(), gpu.total});
        }
        by_hand_.emplace(std::move(gpus), config_.segment);
        return {};
    }

    /// What users had ordered of the worker before. Whose process has ended meanwhile orders nothing.
    Result<void> take_orders_again(const HeldFds& held) {
        const auto kept = held.find(kOrdersKey);
        if (kept == held.end()) return {};
        const auto text = read_all(kept->second.get());
        if (!text) return text.error();
        for (std::size_t at = 0; at < text->size();) {
            const std::size_t end = std::min(text->find('\n', at), text->size());
            const auto request = parse_control_request(std::string_view(*text).substr(at, end - at));
            if (!request) return request.error();
            if (auto taken = by_hand_->take(*request); !taken) log_warning("{}", taken.error().text());
            at = end + 1;
        }
        tell_orders();
        return {};
    }

    void orders_have_changed() {
        keep_orders();
        tell_orders();
    }

    /// So that one that follows knows them.
    void keep_orders() {
        std::string text;
        for (const ControlRequest& request : by_hand_->requests()) text += to_json(request) + "\n";
        auto fd = text_in_memfd("vramswap-orders", text);
        auto kept = fd ? guardian_.keep(kOrdersKey, *fd) : Result<void>(fd.error());
        if (!kept && !guardian_gone_)
            log_warning("orders by hand would not survive this process: {}", kept.error().text());
    }

    void tell_orders() {
        for (std::size_t n = 0; n < watches_.size(); ++n) {
            const auto most = by_hand_->vram_max(n);
            watches_[n].monitor->set_manual_target(by_hand_->target(n));
            watches_[n].monitor->set_yield(most ? std::optional<Yield>(Yield{.most = *most}) : std::nullopt);
        }
    }

    void become(WorkerState next) {
        if (state_ == next) return;
        if (!may_become(state_, next)) {  // a bug, but no reason to drop other programs' memory
            log_error("transition from {} to {} refused", to_string(state_), to_string(next));
            return;
        }
        state_ = next;
    }

    void take_signal() {
        signalfd_siginfo info{};
        while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info))
            if (auto stopped = stop(); !stopped)
                log_warning("signal {} ignored: {}", info.ssi_signo, stopped.error().text());
    }

    void guardian_is_gone() {
        guardian_gone_ = true;
        store_->will_not_be_followed();
        log_error("the guardian of device {} is gone; the device goes on, but would not survive this process",
                  config_.name);
    }

    /// What is in VRAM outlives this process, and another can read it.
    [[noreturn]] void make_way() {
        log_error(
            "the GPU context is lost (the driver has the reason in the kernel's log): worker {} makes way",
            ::getpid());
        log_drain();
        ::_exit(EXIT_FAILURE);
    }

    /// serving or armed, as /proc/swaps tells: swapon and swapoff are other processes' doing.
    void look_at_swaps() {
        if (state_ != WorkerState::serving && state_ != WorkerState::armed) return;
        const auto areas = read_swaps();
        if (!areas) return;
        become(find_swap(*areas, device_) != nullptr ? WorkerState::armed : WorkerState::serving);
    }

    Result<void> stop() {
        look_at_swaps();
        if (state_ == WorkerState::armed)
            return Error{Errc::busy, 0, fmt::format("{} is in use as swap", device_),
                         fmt::format("Run `vramswap down {}`", config_.name)};
        become(WorkerState::draining);
        if (auto stopped = frontend_->stop(); !stopped) {
            become(WorkerState::serving);
            return stopped;
        }
        become(WorkerState::stopped);
        return {};
    }

    std::string answer(std::string_view request) {
        const auto parsed = parse_control_request(request);
        if (!parsed) return error_json(parsed.error());
        const auto done = carry_out(*parsed);
        return done ? to_json(status()) : error_json(done.error());
    }

    Result<void> carry_out(const ControlRequest& request) {
        switch (request.op) {
            case ControlRequest::Op::status:
                return {};
            case ControlRequest::Op::stop:
                return stop();
            case ControlRequest::Op::resize:
            case ControlRequest::Op::yield:
                if (auto taken = by_hand_->take(request); !taken) return taken;
                orders_have_changed();
                return {};
        }
        return Error{Errc::usage, 0, "unknown request"};
    }

    /// What worker and guardian have beside the tables and the stage: buffers of the frontend, the GPU
    /// driver's memory, their own.
    Bytes own_memory() const {
        const auto of = [](pid_t pid) {
            const auto memory = read_process_memory(pid);
            return memory ? memory->anonymous : Bytes{};
        };
        return of(::getpid()) + (guardian_gone_ ? Bytes{} : of(::getppid()));
    }

    DeviceStatus status() {
        look_at_swaps();
        const StoreStats s = store_->stats();
        DeviceStatus d;
        d.name = config_.name;
        d.state = to_string(state_);
        d.problem = problem(s);
        d.device = device_;
        d.frontend = config_.frontend;
        d.gpu = config_.gpu;
        d.mode = to_string(s.mode);
        d.guardian_pid = guardian_gone_ ? 0 : ::getppid();
        d.worker_pid = ::getpid();
        d.worker_deaths = deaths_;
        d.size = s.device;
        d.stored = s.stored;
        d.vram = s.vram;
        d.dirty = s.dirty;
        d.staged = s.staged;
        d.segment = config_.segment;
        tell_moves(s, d);
        tell_gpus(d);
        d.ram = s.ram + own_memory();
        d.pages_read = s.pages_read;
        d.pages_written = s.pages_written;
        d.pages_discarded = s.pages_discarded;
        d.zero_pages_written = s.zero_pages_written;
        d.pages_read_stage = s.pages_read_stage;
        d.pages_read_gpu = s.pages_read_gpu;
        d.pages_flushed = s.pages_flushed;
        d.reread_pages = s.reread_pages;
        d.read_errors = s.read_errors;
        d.writes_refused = s.writes_refused;
        d.flush_errors = s.flush_errors;
        return d;
    }

    void tell_moves(const StoreStats& s, DeviceStatus& d) const {
        d.moved_out = s.moved_out;
        d.moved_back = s.moved_back;
        d.compacted = s.moved_within;
        d.compacting_ns = s.moved_within_ns;
        d.pages_read_spill = s.pages_read_spill;
        d.pages_written_spill = s.pages_written_spill;
        d.move_errors = s.move_errors;
        d.read_latency.assign(s.read_latency.begin(), s.read_latency.end());
        d.write_latency.assign(s.write_latency.begin(), s.write_latency.end());
        if (spill_ == nullptr) return;
        const SpillCounts counts = spill_->counts();
        d.spilled = s.spilled;
        d.spill_capacity = Bytes{kChunkBytes} * counts.capacity;
        d.spill_on_disk = counts.on_disk;
        d.spill_place = config_.spill;
        d.spill_problem = spill_->problem();
    }

    void tell_gpus(DeviceStatus& d) const {
        d.set_by_hand = by_hand_->text();
        for (std::uint32_t n = 0; n < watches_.size(); ++n) {
            const GpuInfo& gpu = backends_[n]->info();
            const MonitorReport seen = watches_[n].monitor->report();
            GpuPart part;
            part.selector = gpu.selector();
            part.name = gpu.name;
            part.vram = store_->holdings(n).vram;
            tell(seen, std::move(part), d);
            d.gpu_name += (d.gpu_name.empty() ? "" : ", ") + gpu.name;
            if (d.problem.empty()) d.problem = vramswap::problem(seen, now_ns());
        }
    }

    std::string problem(const StoreStats& s) const {
        if (s.gpu == Health::gpu_lost) return "the GPU is lost, and with it every page that was only there";
        if (s.gpu == Health::context_lost)
            return "the GPU context is lost: this worker can no longer read from VRAM";
        if (s.read_errors != 0) return fmt::format("{} pages could not be read", s.read_errors);
        if (s.spill_writes_are_refused)
            return "writes to the spill fail: what has its place there is not written";
        if (s.writes_are_refused) return "copies to VRAM fail: writes are refused, pages stay in RAM";
        if (guardian_gone_) return "the guardian is gone";
        return {};
    }

    const DeviceConfig config_;
    const DeviceDir dir_;
    GuardianLink& guardian_;
    WorkerState state_ = WorkerState::configured;
    bool guardian_gone_ = false;
    std::uint32_t deaths_ = 0;  ///< of workers before this one
    std::string device_;
    UniqueFd signals_;
    // In the order of construction; destroyed the other way round.
    std::vector<DriverEntry> drivers_;
    std::vector<std::unique_ptr<Backend>> backends_;
    std::unique_ptr<Spill> spill_;
    std::unique_ptr<PageStore> store_;
    struct Watch {
        std::unique_ptr<MonitoredStore> store;
        std::unique_ptr<Monitor> monitor;
    };
    std::vector<Watch> watches_;  ///< one for each GPU
    std::optional<ByHandOrders> by_hand_;
    std::unique_ptr<ControlServer> control_;
    std::unique_ptr<Frontend> frontend_;
};

}  // namespace

int run_worker() {
    auto text = read_all(kConfigFd);
    auto config = text ? parse_device_config(*text) : Result<DeviceConfig>(text.error());
    if (!config) return 1;
    GuardianLink guardian{UniqueFd(kLinkFd)};
    Worker worker(std::move(*config), guardian);
    if (auto started = worker.start(); !started) {
        (void)guardian.tell_failed(error_json(started.error()));
        // What it took over stays as it is, for the next attempt: destructors would give it back.
        if (worker.is_successor()) ::_exit(EXIT_FAILURE);
        return EXIT_FAILURE;
    }
    worker.serve();
    worker.end();
    return 0;
}

}  // namespace vramswap
