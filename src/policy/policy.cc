// SPDX-License-Identifier: MIT
#include "policy/policy.h"

#include <algorithm>

namespace vramswap {
namespace {

/// A process that starts to use a GPU takes a context of some hundred MiB first. This is seen with the next
/// sample, its use of the GPU up to a second later: NVML averages over 1/6 to 1 s.
constexpr std::uint64_t kContextBytes = 64u << 20;
/// Growth saved up while there was none: a quarter of a second's.
constexpr std::uint64_t kGrowSavedNs = kSecondNs / 4;
/// Part of the move rate; others who take memory faster are met as if they did not.
constexpr double kOutrunMax = 0.9;

std::uint64_t minus(std::uint64_t a, std::uint64_t b) {
    return a > b ? a - b : 0;
}

std::uint64_t plus(std::uint64_t a, std::uint64_t b) {
    return a > kNoLimit - b ? kNoLimit : a + b;
}

std::uint64_t to_bytes(double bytes) {
    constexpr double kMax = 1e19;
    return bytes < kMax ? static_cast<std::uint64_t>(bytes) : kNoLimit;
}

std::uint64_t at_rate(double bytes_per_s, std::uint64_t ns) {
    return to_bytes(bytes_per_s * static_cast<double>(ns) / 1e9);
}

double seconds(std::uint64_t ns) {
    return static_cast<double>(ns) / 1e9;
}

PolicyConfig checked(PolicyConfig config) {
    config.segment = std::max(config.segment, Bytes{kChunkBytes});
    config.move_rate = std::max<std::uint64_t>(config.move_rate, 1);
    config.calm_ns_max = std::max(config.calm_ns_max, config.calm_ns);
    return config;
}

/// Reasons that a reading of free memory could change.
bool depends_on_free(Reason reason) {
    switch (reason) {
        case Reason::enough:
        case Reason::growing:
        case Reason::calming:
        case Reason::at_max:
        case Reason::others:
        case Reason::falling:
            return true;
        default:
            return false;
    }
}

}  // namespace

Policy::Policy(const PolicyConfig& config)
    : config_(checked(config)),
      left_(config_.step_memory_ns, config_.rate_window_ns),
      calm_ns_(config_.calm_ns),
      grow_credit_(config_.segment.n) {}

Plan Policy::decide(const Snapshot& snapshot, std::uint64_t now_ns) {
    if (!started_) begin(snapshot, now_ns);
    passed_ns_ = minus(now_ns, now_);
    now_ = std::max(now_, now_ns);
    observe(snapshot);

    const Sight sight = this->sight(snapshot);
    const std::uint64_t target_before = target_;
    const std::uint64_t kept_free = reserve(snapshot);
    std::uint64_t limit = left_.empty() ? target_ : whole_segments(minus(left_.newest().left, kept_free));
    // Before the first reading nothing is known, also not that it is cramped.
    if ((!left_.empty() && limit < plus(target_, 2 * config_.segment.n)) || sight == Sight::blind)
        cramped_at_ = now_;
    if (sight != Sight::clear) limit = std::min(limit, target_);

    const Wish wish = this->wish(snapshot);
    // What was not moved yet and may stay after all is not moved.
    target_ = std::max(target_, whole_segments(std::min({limit, snapshot.ours.n, wish.bytes})));
    Reason reason = follow(wish, limit);
    // Told apart for the user: the headroom alone would leave us more.
    if (reason == Reason::others && kept_free >= plus(headroom(snapshot), config_.segment.n))
        reason = Reason::falling;
    if (sight != Sight::clear && target_ == target_before && depends_on_free(reason))
        reason = sight == Sight::late ? Reason::late : Reason::blind;

    // What cannot be moved stays, whoever wants it; it is not more than what we hold.
    const std::uint64_t unmovable = minus(snapshot.stored.n, snapshot.spill_room.n);
    const std::uint64_t floor = segments_for(std::min(unmovable, snapshot.ours.n));
    if (target_ < floor) {
        target_ = floor;
        reason = Reason::unmovable;
    }

    mode_ = choose_mode(snapshot);
    return {.target = {target_},
            .most = {most(snapshot, wish, limit, reason)},
            .mode = mode_,
            .move_rate = choose_move_rate(snapshot, wish.reason, limit),
            .swap_rate_max = others_idle() ? kNoLimit : config_.swap_rate_beside_others,
            .reason = reason,
            .reserve = {kept_free}};
}

void Policy::begin(const Snapshot& snapshot, std::uint64_t now_ns) {
    started_ = true;
    now_ = seen_at_ = others_used_at_ = now_ns;
    target_ = whole_segments(snapshot.ours.n);  // of a worker before this one
}

void Policy::observe(const Snapshot& snapshot) {
    bool context_taken = false;
    if (reading_is_good(snapshot)) {
        total_ = snapshot.total;
        seen_at_ = minus(now_, snapshot.free_age_ns);
        left_.add({seen_at_, std::min(plus(snapshot.free.n, snapshot.ours.n), snapshot.total.n)});
        context_taken = left_.last_step() >= kContextBytes;
    }
    const bool others_grew =
        others_memory_ && snapshot.others_memory && *snapshot.others_memory > *others_memory_;
    if (snapshot.others_memory) others_memory_ = snapshot.others_memory;
    // Not to know whether somebody computes counts as if, and being blind does.
    const bool computes =
        snapshot.others_sm_percent.value_or(100) > 0 || snapshot.others_memory_percent.value_or(0) > 0;
    const bool blind = sight(snapshot) == Sight::blind;
    if (computes || others_grew || context_taken || blind) others_used_at_ = now_;

    on_battery_.update(snapshot.power == PowerSource::battery && config_.on_battery == OnBattery::release,
                       now_);
    empty_.update(snapshot.stored.n == 0 && snapshot.pages_out_per_s == 0 && snapshot.queue_pages == 0, now_);
}

bool Policy::reading_is_good(const Snapshot& snapshot) const {
    return snapshot.free_known && snapshot.total.n > 0 && snapshot.free_age_ns <= config_.free_age_ns_max;
}

Policy::Sight Policy::sight(const Snapshot& snapshot) const {
    if (reading_is_good(snapshot)) return Sight::clear;
    return now_ - seen_at_ < config_.blind_after_ns ? Sight::late : Sight::blind;
}

std::uint64_t Policy::headroom(const Snapshot& snapshot) const {
    if (config_.headroom) return config_.headroom->of(total_).n;
    // What other programs keep free or fail without: docs/decisions.md.
    const std::uint64_t twentieth = total_.n / 20;
    return snapshot.display ? std::max(mib(1536).n, 3 * twentieth) : std::max(mib(512).n, twentieth);
}

std::uint64_t Policy::reserve(const Snapshot& snapshot) const {
    if (left_.empty()) return headroom(snapshot);
    const LeftHistory::Fall fall = left_.fall();
    const auto move_rate =
        static_cast<double>(snapshot.move_rate > 0 ? snapshot.move_rate : config_.move_rate);
    // Without new readings a fall is taken to go on, for as much again as was seen of it. Then we hold:
    // readings are late when others allocate (the driver serialises both), and the next one tells, or when
    // the GPU fails, and that is no time to move pages to and fro. After a driver update NVML fails for good,
    // and so does every new user of the GPU: nobody is there to give memory to.
    const std::uint64_t age_ns = now_ - left_.newest().when_ns;
    const double reaction_s =
        seconds(config_.period_ns) + seconds(age_ns) + static_cast<double>(config_.segment.n) / move_rate;
    const double taken = fall.rate * reaction_s / (1 - std::min(fall.rate / move_rate, kOutrunMax));
    const std::uint64_t step = std::min(left_.largest_step(), config_.step_max.of(total_).n);
    return plus(std::max(headroom(snapshot), step), std::min(to_bytes(taken), fall.bytes));
}

Policy::Wish Policy::wish(const Snapshot& snapshot) const {
    Wish wish;
    const auto at_once = [](std::uint64_t bytes, Reason reason) { return Wish{bytes, bytes, reason}; };
    if (snapshot.manual_target) {
        wish = at_once(whole_segments(snapshot.manual_target->n), Reason::by_hand);
    } else if (on_battery_.for_long(config_.battery_after_ns, now_)) {
        wish = at_once(0, Reason::battery);
    } else if (empty_.for_long(config_.empty_after_ns, now_)) {
        wish = at_once(segments_for(config_.target_min.n), Reason::empty);
    } else {
        // A segment of room, and what is swapped out until the decision after next.
        const double out = static_cast<double>(snapshot.pages_out_per_s) * kPageBytes;
        const std::uint64_t room = plus(config_.segment.n, at_rate(out, 2 * config_.period_ns));
        const std::uint64_t need = segments_for(plus(snapshot.stored.n, room));
        wish.bytes = std::max(need, segments_for(config_.target_min.n));
    }
    const auto bound = [&](Bytes most, Reason reason) {
        wish.most = std::min(wish.most, whole_segments(most.n));
        if (wish.bytes > wish.most) wish = at_once(wish.most, reason);
    };
    bound(config_.target_max, Reason::at_max);
    if (snapshot.yield_max) bound(*snapshot.yield_max, Reason::yielded);
    return wish;
}

Reason Policy::follow(const Wish& wish, std::uint64_t limit) {
    judge_growth(limit);
    target_ = std::min({target_, limit, wish.most});
    if (wish.reason == Reason::battery) cramped_at_ = now_;  // the charger comes back: wait for calm
    needs_less_.update(wish.bytes < target_, now_);
    if (wish.bytes > target_) return grow(wish, limit);
    // Freed clusters are used again, as a rule: what is not needed goes back after the time of calm.
    if (needs_less_.for_long(config_.calm_ns, now_)) target_ = wish.bytes;
    return wish.reason;
}

void Policy::judge_growth(std::uint64_t limit) {
    if (!grown_at_) return;
    const bool proven = now_ - *grown_at_ >= 2 * calm_ns_;
    const bool regretted = !proven && limit < target_;
    if (proven) calm_ns_ = std::max(calm_ns_ / 2, config_.calm_ns);
    if (regretted) calm_ns_ = std::min(calm_ns_ * 2, config_.calm_ns_max);
    if (proven || regretted) grown_at_.reset();
}

Reason Policy::grow(const Wish& wish, std::uint64_t limit) {
    const auto rate = static_cast<double>(config_.grow_rate);
    const std::uint64_t saved_max = std::max(config_.segment.n, at_rate(rate, kGrowSavedNs));
    grow_credit_ = std::min(plus(grow_credit_, at_rate(rate, passed_ns_)), saved_max);

    const bool by_hand = wish.reason == Reason::by_hand;
    const std::uint64_t room = minus(limit, by_hand ? 0 : config_.segment.n);
    if (room < plus(target_, config_.segment.n)) return Reason::others;
    if (by_hand) {
        target_ = std::min(wish.bytes, room);
    } else {
        if (!calm()) return Reason::calming;
        const std::uint64_t step =
            std::min({wish.bytes - target_, room - target_, whole_segments(grow_credit_)});
        target_ += step;
        grow_credit_ -= step;
        if (step > 0) grown_at_ = now_;
    }
    return target_ == wish.bytes ? wish.reason : Reason::growing;
}

/// Whoever swaps cannot wait for the next plan, which may be late when the machine is short of RAM. What is
/// not needed is not taken, so this is not more than the target grows by itself.
std::uint64_t Policy::most(const Snapshot& snapshot, const Wish& wish, std::uint64_t limit,
                           Reason reason) const {
    const bool grows = reason == Reason::enough || reason == Reason::growing || reason == Reason::empty;
    const bool shrinks = snapshot.ours.n > target_;
    if (!grows || shrinks || !calm() || sight(snapshot) != Sight::clear) return target_;
    const std::uint64_t room = minus(limit, config_.segment.n);
    const std::uint64_t unasked = plus(target_, config_.grow_unasked.n);
    const std::uint64_t wished = reason == Reason::empty ? config_.target_max.n : wish.most;
    return std::max(target_, whole_segments(std::min({room, wished, unasked})));
}

PlannedMode Policy::choose_mode(const Snapshot& snapshot) const {
    const bool harmless = others_idle() && !snapshot.display && snapshot.power == PowerSource::mains;
    if (config_.mode == ModeChoice::always_copy || !harmless) return PlannedMode::copy;
    const auto pages = mode_ == PlannedMode::turbo ? config_.turbo_pages_leave : config_.turbo_pages;
    return snapshot.queue_pages >= pages ? PlannedMode::turbo : PlannedMode::copy;
}

std::uint64_t Policy::choose_move_rate(const Snapshot& snapshot, Reason wished, std::uint64_t limit) const {
    const bool somebody_waits =
        snapshot.ours.n > limit || wished == Reason::by_hand || wished == Reason::yielded;
    if (somebody_waits && snapshot.ours.n > target_) return kNoLimit;
    // Faults come first.
    const bool short_of_ram =
        snapshot.ram_psi_some_avg10 >= config_.psi_pressed || snapshot.ram_available < config_.ram_pressed;
    const double swap =
        (static_cast<double>(snapshot.pages_in_per_s) + static_cast<double>(snapshot.pages_out_per_s)) *
        static_cast<double>(kPageBytes);
    const bool busy = swap >= static_cast<double>(config_.idle_move_rate);
    return short_of_ram || busy ? 0 : config_.idle_move_rate;
}

bool Policy::others_idle() const {
    return now_ - others_used_at_ >= config_.turbo_idle_ns;
}

std::uint64_t Policy::whole_segments(std::uint64_t bytes) const {
    return round_down(bytes, config_.segment.n);
}

std::uint64_t Policy::segments_for(std::uint64_t bytes) const {
    return whole_segments(plus(bytes, config_.segment.n - 1));
}

std::string_view to_string(PlannedMode mode) {
    return mode == PlannedMode::turbo ? "turbo" : "copy";
}

std::string_view to_string(Reason reason) {
    switch (reason) {
        case Reason::enough:
            return "enough for what is stored";
        case Reason::growing:
            return "growing";
        case Reason::calming:
            return "waits for calm before it grows";
        case Reason::at_max:
            return "the configured maximum";
        case Reason::others:
            return "others use the GPU's memory";
        case Reason::falling:
            return "others are taking the GPU's memory";
        case Reason::unmovable:
            return "CANNOT GIVE BACK: the spill has no room for what is stored";
        case Reason::late:
            return "free memory not read in time: holds";
        case Reason::blind:
            return "FREE MEMORY UNKNOWN: holds, does not grow";
        case Reason::battery:
            return "on battery: gives all back";
        case Reason::empty:
            return "nothing is stored: gives all back";
        case Reason::by_hand:
            return "set by hand";
        case Reason::yielded:
            return "yielded by hand";
    }
    return "unknown";
}

}  // namespace vramswap
