// What the lanes beside a lane hold, by warp shuffles. Every lane of the warp takes part.
#pragma once

#include "kernel.h"

namespace diffreg {

// From the lane `by` columns further; beyond the warp's ends, a lane gets its own value back.
template <typename T>
DIFFREG_DEVICE T shuffle_from_right(T value, int by = 1) {
  return __shfl_down_sync(0xffffffffu, value, by);
}
template <typename T>
DIFFREG_DEVICE T shuffle_from_left(T value, int by = 1) {
  return __shfl_up_sync(0xffffffffu, value, by);
}

// The first lane's value, which the compiler then knows to be the same for the warp.
template <typename T>
DIFFREG_DEVICE T warp_uniform(T value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

}  // namespace diffreg
