// What the scheduler tells the sanitizers: address (DIFFREG_ASAN) and race (DIFFREG_TSAN) detector.
// Without either, nothing.
#pragma once

#include <cstddef>

#ifdef DIFFREG_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef DIFFREG_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace emulation {

// One side of a switch between the host and a fiber.
struct Switch {
  void* fake_stack = nullptr;
  const void* host_bottom = nullptr;
  size_t host_size = 0;
  void* race_fiber = nullptr;

  void create() {
#ifdef DIFFREG_TSAN
    race_fiber = __tsan_create_fiber(0);
#endif
  }
  // The host leaves for a fiber with this stack.
  void leave_for([[maybe_unused]] Switch& fiber, [[maybe_unused]] const void* stack,
                 [[maybe_unused]] size_t size) {
#ifdef DIFFREG_ASAN
    __sanitizer_start_switch_fiber(&fake_stack, stack, size);
#endif
#ifdef DIFFREG_TSAN
    race_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.race_fiber, 1);  // 1: a switch orders nothing
#endif
  }
  // A fiber leaves for the host.
  void leave_for_host([[maybe_unused]] Switch& host) {
#ifdef DIFFREG_ASAN
    __sanitizer_start_switch_fiber(&fake_stack, host_bottom, host_size);
#endif
#ifdef DIFFREG_TSAN
    __tsan_switch_to_fiber(host.race_fiber, 1);
#endif
  }
  void arrive() {
#ifdef DIFFREG_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &host_bottom, &host_size);
#endif
  }
};

// What orders accesses, as seen by the race detector. A start and an end that shared one object
// would order the blocks of a launch, which nothing orders on a GPU; two objects a barrier, used in
// turn, keep what a fast thread does after it out of what a slow one learns at it.
class Tokens {
 public:
#ifdef DIFFREG_TSAN
  static constexpr bool kFreshArena = true;
  static constexpr size_t kBytes = 1024;
  // Every block has objects of its own: `memory` only lends their addresses.
  void open_block(void* memory) { block_ = static_cast<char*>(memory); }
  void release_start() { __tsan_release(&start_); }
  void acquire_start() { __tsan_acquire(&start_); }
  void release_end() { __tsan_release(&end_); }
  void acquire_end() { __tsan_acquire(&end_); }
  void release_block(int turn) { __tsan_release(block_ + 8 * turn); }
  void acquire_block(int turn) { __tsan_acquire(block_ + 8 * turn); }
  void release_warp(int warp, int turn) { __tsan_release(block_ + 16 * (warp + 1) + 8 * turn); }
  void acquire_warp(int warp, int turn) { __tsan_acquire(block_ + 16 * (warp + 1) + 8 * turn); }
  void fence() {
    __tsan_acquire(&fence_);
    __tsan_release(&fence_);
  }

 private:
  long start_, end_, fence_;
  char* block_;
#else
  static constexpr bool kFreshArena = false;
  static constexpr size_t kBytes = 0;
  void open_block(void*) {}
  void release_start() {}
  void acquire_start() {}
  void release_end() {}
  void acquire_end() {}
  void release_block(int) {}
  void acquire_block(int) {}
  void release_warp(int, int) {}
  void acquire_warp(int, int) {}
  void fence() {}
#endif
};

#ifdef DIFFREG_TSAN
constexpr bool kWatchesFences = false;  // it would see a thread allocate
#else
constexpr bool kWatchesFences = true;
#endif

#ifdef DIFFREG_ASAN
constexpr bool kPoisons = true;
inline void poison(void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void unpoison(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
constexpr bool kPoisons = false;
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
#endif

}  // namespace emulation
