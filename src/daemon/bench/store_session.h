// SPDX-License-Identifier: MIT
// StoreSession: a store of its own on an open GPU, filled, with everything a measurement needs around it:
// threads that load it, one that maintains it, registered memory. Control thread; blocks.
#pragma once

#include <memory>

#include "daemon/bench/load.h"
#include "store/page_store.h"

namespace vramswap {

/// Calls PageStore::maintain when it is asked for, as a worker's control thread does.
class Maintainer;

struct JobResult {
    Job job;
    Measured measured;
    Bytes ram{};             ///< the store's tables and stage
    double stage_share = 0;  ///< of the pages read, those that were in the stage
};

class StoreSession {
  public:
    /// `memory` as LoadTeam wants it, page-aligned, not registered. Fills the store. Errors: whatever the
    /// store or the GPU meets.
    static Result<std::unique_ptr<StoreSession>> create(Backend& gpu, const StoreConfig& config,
                                                        std::span<std::byte> memory, unsigned threads);
    ~StoreSession();
    StoreSession(const StoreSession&) = delete;
    StoreSession& operator=(const StoreSession&) = delete;

    /// Brings the pages to where the job wants them, then runs it.
    Result<JobResult> run(const Job& job, double seconds);

  private:
    StoreSession(std::unique_ptr<PageStore> store, std::span<std::byte> memory);
    Result<void> start(unsigned threads);
    Result<void> empty_stage();
    Result<void> fill_stage();

    const std::unique_ptr<PageStore> store_;
    const std::span<std::byte> memory_;
    bool registered_ = false;
    std::unique_ptr<Maintainer> maintainer_;
    std::unique_ptr<LoadTeam> team_;
};

}  // namespace vramswap
