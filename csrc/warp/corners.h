// CUDA only: the voxels around a point, loaded.
#pragma once

#include "../common/kernel.h"
#include "warp.h"

namespace diffreg::warp {

// The voxels of a plane that a point is interpolated from.
template <typename S, typename T = Arithmetic<S>>
DIFFREG_DEVICE Corners<2, T> corners_of(const S* image, int32_t width, const Neighbours<T>* at) {
  const S* row[] = {row_of(image, at[0].low, width), row_of(image, at[0].high, width)};
  return Corners<2, T>(
      [&](int k) { return load(row[k / 2] + (k % 2 == 0 ? at[1].low : at[1].high)); });
}

}  // namespace diffreg::warp
