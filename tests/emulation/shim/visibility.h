// What a block may read of another within a launch: stores that a fence and then an atomic of the
// other have followed, once a fence of its own has followed a later atomic. Fibers run on one
// processor, where every store is seen at once; this knows better.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sanitizers.h"

namespace emulation {

class Visibility {
 public:
  void open_launch() {
    stores_ = {};  // to clear a map takes as long as it has ever been large
    releases_ = {};
  }
  void open_block(int64_t block) {
    block_ = block;
    fenced_ = observed_ = acquired_ = 0;
  }
  void fence() {
    if (!kWatchesFences) return;
    fenced_ = ++clock_;
    acquired_ = observed_;
  }
  void atomic() {
    if (!kWatchesFences) return;
    observed_ = ++clock_;
    if (fenced_ > 0) releases_[block_].push_back({fenced_, observed_});
  }
  void store(const void* address) {
    if (kWatchesFences) stores_[address] = {block_, ++clock_};
  }
  bool sees(const void* address) const {
    if (!kWatchesFences) return true;
    const auto store = stores_.find(address);
    if (store == stores_.end() || store->second.block == block_) return true;
    const auto releases = releases_.find(store->second.block);
    if (releases == releases_.end()) return false;
    for (const Release& release : releases->second) {
      if (release.fence > store->second.time) return release.atomic < acquired_;
    }
    return false;
  }

 private:
  struct Store {
    int64_t block;
    uint64_t time;
  };
  struct Release {
    uint64_t fence, atomic;
  };
  std::unordered_map<const void*, Store> stores_;
  std::unordered_map<int64_t, std::vector<Release>> releases_;  // by block, in order
  int64_t block_ = 0;
  // Of the running block: its last fence, its last atomic, and that before its last fence.
  uint64_t clock_ = 0, fenced_ = 0, observed_ = 0, acquired_ = 0;
};

}  // namespace emulation
