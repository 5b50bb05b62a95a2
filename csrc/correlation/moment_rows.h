// CPU only: the moments of two images in one pass, put together exactly from those of short pieces
// of rows about their own means. Called by the drivers of correlation and registration_objective.
#pragma once

#include <cstdint>

#include "../common/mask.h"
#include "../common/reduce.h"
#include "correlation.h"

namespace diffreg::correlation {

// Of a part of an image: weight, means, and sums of squares and products about the means.
struct PartMoments {
  double weight = 0, mean_warped = 0, mean_fixed = 0;
  double warped_warped = 0, fixed_fixed = 0, product = 0;

  void add(const PartMoments& part) {
    if (part.weight == 0) return;
    const double whole = weight + part.weight, share = part.weight / whole;
    const double b = part.mean_warped - mean_warped, a = part.mean_fixed - mean_fixed;
    const double spread = weight * share;
    warped_warped += part.warped_warped + spread * (b * b);
    fixed_fixed += part.fixed_fixed + spread * (a * a);
    product += part.product + spread * (a * b);
    mean_warped += share * b;
    mean_fixed += share * a;
    weight = whole;
  }

  Moments moments(double epsilon) const {
    const auto centred = [&](double sum, double mean) {
      return Moments::without_rounding(sum, sum + weight * mean * mean, epsilon);
    };
    return {mean_warped, mean_fixed, centred(warped_warped, mean_warped),
            centred(fixed_fixed, mean_fixed), product};
  }
};

// Moments of the voxels begin <= x < end of a row, few enough to be read twice from the cache.
template <typename T, typename Weight>
PartMoments moments_of_piece(const T* warped, const T* fixed, int64_t begin, int64_t end,
                             const Weight& weight) {
  double raw[3] = {};
  sum_row<T>(
      begin, end,
      [&](int64_t x, T* out) {
        out[0] = weight(x);
        out[1] = weight(x) * warped[x];
        out[2] = weight(x) * fixed[x];
      },
      raw);
  PartMoments part;
  if (raw[0] == 0) return part;
  // Sums about means rounded to T; what the rounding leaves is taken off again.
  const T mean_w = static_cast<T>(raw[1] / raw[0]), mean_r = static_cast<T>(raw[2] / raw[0]);
  double sums[5] = {};
  sum_row<T>(
      begin, end,
      [&](int64_t x, T* out) {
        const T b = warped[x] - mean_w, a = fixed[x] - mean_r;
        out[0] = weight(x) * b;
        out[1] = weight(x) * a;
        out[2] = weight(x) * (b * b);
        out[3] = weight(x) * (a * a);
        out[4] = weight(x) * (a * b);
      },
      sums);
  const double b = sums[0] / raw[0], a = sums[1] / raw[0];
  part.weight = raw[0];
  part.mean_warped = mean_w + b;
  part.mean_fixed = mean_r + a;
  part.warped_warped = sums[2] - b * sums[0];
  part.fixed_fixed = sums[3] - a * sums[1];
  part.product = sums[4] - b * sums[1];
  return part;
}

template <typename T>
void add_row(const T* warped, const T* fixed, const T* weights, int64_t width,
             PartMoments& moments) {
  with_weights(weights, [&](const auto& weight) {
    for (int64_t begin = 0; begin < width; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, width);
      moments.add(moments_of_piece(warped, fixed, begin, end, weight));
    }
  });
}

}  // namespace diffreg::correlation
