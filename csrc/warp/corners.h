// CUDA only: the voxels around a point, loaded.
#pragma once

#include "../common/kernel.h"
#include "warp.h"

namespace diffreg::warp {

// The voxels that a point is interpolated from. A row of an image, or a plane of a volume, is found
// in 64 bits, what stands in it in 32.
template <int D, typename S, typename T = Arithmetic<S>>
DIFFREG_DEVICE Corners<D, T> corners_of(const S* image, const int32_t* size,
                                        const Neighbours<T>* at) {
  static_assert(D == 2 || D == 3);
  const int32_t stride = D == 2 ? size[1] : size[1] * size[D - 1];
  const S* along[] = {row_of(image, at[0].low, stride), row_of(image, at[0].high, stride)};
  return Corners<D, T>([&](int k) {
    int32_t within = k & 1 ? at[D - 1].high : at[D - 1].low;
    if constexpr (D == 3) within += (k & 2 ? at[1].high : at[1].low) * size[D - 1];
    return load(along[k >> (D - 1)] + within);
  });
}

}  // namespace diffreg::warp
