// CPU only: the measure and its gradient to one of the images, row by row.
#pragma once

#include <vector>

#include "../common/image_gradient.h"
#include "../common/mask.h"
#include "parallel_level_sets.h"

namespace diffreg::parallel_level_sets {

// `own` is the image that the gradient goes to, `other` the one beside it.
template <int D, typename T>
class LevelSetRows {
 public:
  LevelSetRows(const Channel<D, T>& own, const Channel<D, T>& other, const Scales<T>& scales)
      : own_(own), other_(other), scales_(scales) {}

  // Sum of the weighted measure over a row.
  double value(int64_t row, const T* weights) const {
    return sum_over(row, weights,
                    [](int64_t, T, const auto&, const T*, const T*) DIFFREG_INLINE_LAMBDA {});
  }

  // Writes factor times the weighted measure's gradient to the own image's derivatives along a row,
  // (W) each; the sum over the row.
  double slopes(int64_t row, T factor, const T* weights, T* const* to) const {
    T* out[D];
    for (int k = 0; k < D; ++k) out[k] = to[k];
    return sum_over(row, weights,
                    [&](int64_t x, T weight, const auto& here, const T* g, const T* h)
                        DIFFREG_INLINE_LAMBDA {
                          const auto slopes = here.slopes(factor * weight);
                          DIFFREG_UNROLL
                          for (int k = 0; k < D; ++k)
                            out[k][x] = counted(slopes.along(g[k], h[k]), weight);
                        });
  }

 private:
  // Calls each(x, weight, voxel, g, h) along a row; the sum of the weighted measure.
  template <typename Each>
  double sum_over(int64_t row, const T* weights, const Each& each) const {
    const int64_t W = own_.grid.width;
    const GradientRow<D, T> own(own_, own_.grid, row), other(other_, own_.grid, row);
    const Scales<T> scales = scales_;
    double total[1] = {0};
    with_weights(weights, [&](const auto& weight) {
      const auto at = [&](int64_t x, int64_t left, int64_t right) DIFFREG_INLINE_LAMBDA {
        T g[D], h[D];
        own.at(x, left, right, g);
        other.at(x, left, right, h);
        const Voxel<D, T> here(g, h, scales);
        each(x, weight(x), here, g, h);
        return weight(x) * counted(here.value(), weight(x));
      };
      for_ends(W, [&](int64_t x, int64_t left, int64_t right) {
        total[0] += double(at(x, left, right));
      });
      sum_row<T>(
          1, W - 1, [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA { out[0] = at(x, -1, 1); }, total);
    });
    return total[0];
  }

  Channel<D, T> own_, other_;
  Scales<T> scales_;
};

}  // namespace diffreg::parallel_level_sets
