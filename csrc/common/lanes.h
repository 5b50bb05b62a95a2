// CPU only: a row in pieces of a fixed number of voxels, each of which is one vector or a few.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host_device.h"

namespace diffreg {

constexpr int64_t kLanes = 16;

// Calls run(x) for begin <= x < end. No call may depend on another: the loop is vectorised. The
// last piece begins where it still fits, so that a row leaves no voxels to scalar code: run(x) may
// come twice, and must do the same again.
template <typename Run>
DIFFREG_INLINE void for_lanes(int64_t begin, int64_t end, const Run& run) {
  if (end - begin < kLanes) {
    for (int64_t x = begin; x < end; ++x) {
      run(x);
      asm volatile("");  // not a vectorised loop for rows this short
    }
    return;
  }
  for (int64_t piece = begin; piece < end; piece += kLanes) {
    const int64_t first = std::min(piece, end - kLanes);
#pragma GCC ivdep
    for (int64_t lane = 0; lane < kLanes; ++lane) run(first + lane);  // hot: row
  }
}

}  // namespace diffreg
