// CPU only: the gradient to the moving image, which every strip of it collects by itself.
#pragma once

#include <algorithm>
#include <vector>

#include "warp_lanes.h"

namespace diffreg::warp {

// The rows of the moving grid that one row of the fixed grid touches.
struct RowRange {
  int64_t lowest, highest;
};

// Every strip of the moving grid collects its own contributions in the raster order of the fixed
// grid: no atomics, and the same bits whatever the number of threads.
// reach(sample, row) is the range that a row of the fixed grid touches; add(sample, row, first,
// end) adds what it gives to the rows [first, end) of the moving grid.
template <int D, typename Reach, typename Add>
void collect(const Grids<D>& grids, const Reach& reach, const Add& add) {
  std::vector<RowRange> ranges(grids.samples * grids.to[0]);
  for_each_row(grids,
               [&](int64_t n, int64_t row) { ranges[n * grids.to[0] + row] = reach(n, row); });
  for_each_strip(grids.samples, grids.from[0], grids.stride[0],
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   for (int64_t row = 0; row < grids.to[0]; ++row) {
                     const RowRange range = ranges[n * grids.to[0] + row];
                     if (range.highest >= first && range.lowest < end) add(n, row, first, end);
                   }
                 });
}

// What some voxels of a line give to the voxels around each, the first axis slowest; of the nearest
// voxel alone there is one.
template <typename Rule, int D, typename T>
struct Parts {
  static constexpr int kCorners = Rule::kLinear ? 1 << D : 1;
  T part[kCorners][kPiece];

  static constexpr bool is_high(int corner, int axis) { return corner >> (D - 1 - axis) & 1; }

  // 0 where the upstream gradient or a weight is 0.
  void fill(const Lanes<D, T>& lanes, const T* upstream, int64_t count) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {  // hot: parts
      DIFFREG_UNROLL
      for (int corner = 0; corner < kCorners; ++corner) {
        T value = upstream[i];
        DIFFREG_UNROLL
        for (int k = 0; k < D; ++k) {
          const T weight = is_high(corner, k) ? lanes.high_weight[k][i] : lanes.low_weight[k][i];
          value = counted(passed_on(value, weight), weight);
        }
        part[corner][i] = value;
      }
    }
  }

  // Adds those of voxel i to the rows [first, end) of axis 0. A 0 changes nothing.
  DIFFREG_INLINE void add(const Lanes<D, T>& lanes, const int64_t* stride, int64_t i, int64_t first,
                          int64_t end, T* image) const {
    constexpr int kHalf = Rule::kLinear ? kCorners / 2 : 1;
    DIFFREG_UNROLL
    for (int half = 0; half < kCorners / kHalf; ++half) {
      const int32_t row = half ? lanes.high[0][i] : lanes.low[0][i];
      if (row < first || row >= end) continue;
      DIFFREG_UNROLL
      for (int corner = half * kHalf; corner < (half + 1) * kHalf; ++corner) {
        int64_t voxel = row * stride[0];
        DIFFREG_UNROLL
        for (int k = 1; k < D; ++k) {
          voxel += (is_high(corner, k) ? lanes.high[k][i] : lanes.low[k][i]) * stride[k];
        }
        image[voxel] += part[corner][i];
      }
    }
  }
};

template <typename Rule, int D, typename T>
void add_to_moving_linear(const Grids<D>& grids,
                          const T* gradient,      // (N, C, *to)
                          const T* displacement,  // (N, D, *to)
                          T* grad_moving) {       // (N, C, *from)
  const Displaced<D, T> field{displacement};
  const auto for_row_of = [&](int64_t n, int64_t row, const auto& run) {
    for_lanes_of_row<Rule>(grids, field, n, row, run);
  };
  const auto reach = [&](int64_t n, int64_t row) {
    int32_t lowest = INT32_MAX, highest = -1;
    for_row_of(n, row, [&](int64_t, const Lanes<D, T>& lanes, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        lowest = std::min(lowest, lanes.low[0][i]);
        highest = std::max(highest, lanes.high[0][i]);
      }
    });
    return RowRange{lowest, highest};
  };
  collect(grids, reach, [&](int64_t n, int64_t row, int64_t first, int64_t end) {
    Parts<Rule, D, T> parts;
    for_row_of(n, row, [&](int64_t voxel, const Lanes<D, T>& lanes, int64_t count) {
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        parts.fill(lanes, gradient + c * grids.to_voxels + voxel, count);
        T* image = grad_moving + c * grids.from_voxels;
        for (int64_t i = 0; i < count; ++i) parts.add(lanes, grids.stride, i, first, end, image);
      }
    });
  });
}

template <int D, typename T>
void add_to_moving_cubic(const Grids<D>& grids, Padding padding, const T* gradient,
                         const T* displacement, T* grad_moving) {
  const Displaced<D, T> field{displacement};
  const auto for_row_of = [&](int64_t n, int64_t row, const auto& run) {
    for_lines(grids, n, row, [&](const Line<D>& line) {
      for_taps(grids, field, padding, line,
               [&](int64_t x, const CubicTaps<T>* at) { run(line.voxel + x, at); });
    });
  };
  const auto reach = [&](int64_t n, int64_t row) {
    RowRange range{grids.from[0], -1};
    for_row_of(n, row, [&](int64_t, const CubicTaps<T>* at) {
      for (int k = 0; k < CubicAxis<T>::kTaps; ++k) {
        range.lowest = std::min<int64_t>(range.lowest, at[0].tap(k).index);
        range.highest = std::max<int64_t>(range.highest, at[0].tap(k).index);
      }
    });
    return range;
  };
  collect(grids, reach, [&](int64_t n, int64_t row, int64_t first, int64_t end) {
    for_row_of(n, row, [&](int64_t voxel, const CubicTaps<T>* at) {
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        const T value = gradient[c * grids.to_voxels + voxel];
        if (value == 0) continue;
        splat_cubic<D>(grad_moving + c * grids.from_voxels, grids.stride, at, value, first, end,
                       [](T* voxel, T part) { *voxel += part; });
      }
    });
  });
}

template <int D, typename T>
void add_to_moving(const Grids<D>& grids, const Sampling& sampling,
                   const T* gradient,      // (N, C, *to)
                   const T* displacement,  // (N, D, *to)
                   T* grad_moving) {       // (N, C, *from)
  if (sampling.interpolation == Interpolation::cubic) {
    return add_to_moving_cubic(grids, sampling.padding, gradient, displacement, grad_moving);
  }
  with_rule(sampling, [&](auto rule) {
    add_to_moving_linear<decltype(rule)>(grids, gradient, displacement, grad_moving);
  });
}

}  // namespace diffreg::warp
