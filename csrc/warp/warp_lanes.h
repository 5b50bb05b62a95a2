// CPU only: the neighbours of some voxels of a row at once, for what goes on voxel by voxel; of
// cubic interpolation, in plain loops, those of one.
#pragma once

#include <algorithm>

#include "../common/parallel.h"
#include "cubic.h"
#include "warp_rows.h"

namespace diffreg::warp {

// Neighbours of some voxels of a line, as arrays that a vectorised loop can fill.
template <int D, typename T>
struct Lanes {
  static constexpr int64_t kCount = 128;
  int32_t low[D][kCount], high[D][kCount];
  T low_weight[D][kCount], high_weight[D][kCount];

  template <typename Rule>
  void fill(const Grids<D>& grids, const Line<D, T>& line, int64_t begin, int64_t end) {
    for_voxels<Rule>(grids, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
      for (int k = 0; k < D; ++k) {
        low[k][x - begin] = at[k].low;
        high[k][x - begin] = at[k].high;
        low_weight[k][x - begin] = at[k].low_weight;
        high_weight[k][x - begin] = at[k].high_weight;
      }
    });
  }
};

// Calls run(voxel, lanes, count) for the voxels of one row of the fixed grid, some at a time in
// raster order.
template <typename Rule, int D, typename T, typename Run>
void for_lanes_of_row(const Grids<D>& grids, const T* displacement,  // (D, *to) of one sample
                      int64_t row, const Run& run) {
  Lanes<D, T> lanes;
  for_lines(grids, displacement, row, [&](const Line<D, T>& line) {
    for (int64_t begin = 0; begin < grids.to[D - 1]; begin += lanes.kCount) {
      const int64_t end = std::min(begin + lanes.kCount, grids.to[D - 1]);
      lanes.template fill<Rule>(grids, line, begin, end);
      run(line.voxel + begin, lanes, end - begin);
    }
  });
}

// Calls run(voxel, at) for the voxels of one row of the fixed grid, one after the other in raster
// order; without slopes.
template <typename Rule, int D, typename T, typename Run>
void for_row(const Grids<D>& grids, const T* displacement,  // (D, *to) of one sample
             int64_t row, const Run& run) {
  for_lanes_of_row<Rule>(grids, displacement, row,
                         [&](int64_t voxel, const Lanes<D, T>& lanes, int64_t count) {
                           for (int64_t i = 0; i < count; ++i) {
                             Neighbours<T> at[D];
                             for (int k = 0; k < D; ++k) {
                               at[k] = {lanes.low[k][i],
                                        lanes.high[k][i],
                                        lanes.low_weight[k][i],
                                        lanes.high_weight[k][i],
                                        T(0),
                                        T(0)};
                             }
                             run(voxel + i, at);
                           }
                         });
}

// Calls run(voxel, taps) for the voxels of one row (axis 0) of the fixed grid.
template <int D, typename T, typename Run>
void for_cubic_row(const Grids<D>& grids, const T* displacement, Padding padding, int64_t row,
                   const Run& run) {
  for_lines(grids, displacement, row, [&](const Line<D, T>& line) {
    for (int64_t x = 0; x < grids.to[D - 1]; ++x) {
      T shift[D], bad = 0;
      for (int k = 0; k < D; ++k) {
        shift[k] = line.component[k * grids.to_voxels + x];
        bad += poison(shift[k]);
      }
      CubicTaps<T> at[D];
      for (int k = 0; k < D; ++k) {
        const T from = static_cast<T>(k == D - 1 ? x : line.index[k]);
        at[k] = CubicTaps<T>({from + shift[k], bad, static_cast<int32_t>(grids.from[k]), padding});
      }
      run(line.voxel + x, at);
    }
  });
}

// Calls run(sample, row) for every row (axis 0) of the fixed grid, in parallel.
template <int D, typename Run>
void for_each_row(const Grids<D>& grids, const Run& run) {
  for_each_strip(
      grids.samples, grids.to[0], grids.row_voxels,
      [&](int64_t n, int64_t, int64_t first, int64_t end) {
        for (int64_t row = first; row < end; ++row) run(n, row);
      },
      D == 2 ? kStripRows : 1);
}

}  // namespace diffreg::warp
