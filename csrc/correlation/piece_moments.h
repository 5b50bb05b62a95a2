// CPU only: the moments of two images in one pass, merged exactly from those of short pieces about
// their own means.
#pragma once

#include <cstdint>

#include "../common/mask.h"
#include "../common/reduce.h"
#include "part_moments.h"

namespace diffreg::correlation {

// Moments of the voxels begin <= x < end, few enough to be read twice from the cache.
template <typename T, typename Weight>
PartMoments moments_of_piece(const T* warped, const T* fixed, int64_t begin, int64_t end,
                             const Weight& weight) {
  double raw[3] = {};
  sum_row<T>(
      begin, end,
      [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA {
        out[0] = weight(x);
        out[1] = weight(x) * counted(warped[x], weight(x));
        out[2] = weight(x) * counted(fixed[x], weight(x));
      },
      raw);
  if (raw[0] == 0) return {};
  // Sums about means rounded to T; what the rounding leaves is taken off again.
  const T mean_w = static_cast<T>(raw[1] / raw[0]), mean_r = static_cast<T>(raw[2] / raw[0]);
  double sums[5] = {};
  sum_row<T>(
      begin, end,
      [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA {
        const T b = counted(warped[x] - mean_w, weight(x));
        const T a = counted(fixed[x] - mean_r, weight(x));
        out[0] = weight(x) * b;
        out[1] = weight(x) * a;
        out[2] = weight(x) * (b * b);
        out[3] = weight(x) * (a * a);
        out[4] = weight(x) * (a * b);
      },
      sums);
  return moments_about(mean_w, mean_r, raw[0], sums);
}

template <typename T>
void add_voxels(const T* warped, const T* fixed, const T* weights, int64_t voxels,
                PartMoments& moments) {
  with_weights(weights, [&](const auto& weight) {
    for (int64_t begin = 0; begin < voxels; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, voxels);
      moments.add(moments_of_piece(warped, fixed, begin, end, weight));
    }
  });
}

}  // namespace diffreg::correlation
