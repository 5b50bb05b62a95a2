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
  int32_t low[D][kPiece], high[D][kPiece];
  T low_weight[D][kPiece], high_weight[D][kPiece];

  template <typename Rule, typename Field>
  void fill(const Grids<D>& grids, const Field& field, const Line<D>& line, int64_t begin,
            int64_t end) {
    for_voxels<Rule>(grids, field, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
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
template <typename Rule, int D, typename Field, typename Run>
void for_lanes_of_row(const Grids<D>& grids, const Field& field, int64_t sample, int64_t row,
                      const Run& run) {
  Lanes<D, typename Field::Type> lanes;
  for_lines(grids, sample, row, [&](const Line<D>& line) {
    for_pieces(grids, [&](int64_t begin, int64_t end) {
      lanes.template fill<Rule>(grids, field, line, begin, end);
      run(line.voxel + begin, lanes, end - begin);
    });
  });
}

// Calls run(voxel, at) for the voxels of one row of the fixed grid, one after the other in raster
// order; without slopes.
template <typename Rule, int D, typename Field, typename Run>
void for_row(const Grids<D>& grids, const Field& field, int64_t sample, int64_t row,
             const Run& run) {
  using T = typename Field::Type;
  for_lanes_of_row<Rule>(grids, field, sample, row,
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

// Calls run(x, taps) for the voxels of a line.
template <int D, typename Field, typename Run>
void for_taps(const Grids<D>& grids, const Field& field, Padding padding, const Line<D>& line,
              const Run& run) {
  using T = typename Field::Type;
  for_pieces(grids, [&](int64_t begin, int64_t end) {
    const auto points = field.points(grids, line, begin);
    for (int64_t x = begin; x < end; ++x) {
      T point[D];
      const T bad = points(static_cast<int32_t>(x), point);
      CubicTaps<T> at[D];
      for (int k = 0; k < D; ++k) {
        at[k] = CubicTaps<T>({point[k], bad, static_cast<int32_t>(grids.from[k]), padding});
      }
      run(x, at);
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
