// CPU only: the field of points M (p + u(p), 1), line by line, and its lines' sums for the gradient
// to M.
#pragma once

#include "../common/reduce.h"
#include "../warp/sampled_rows.h"
#include "affine_warp.h"

namespace diffreg::affine_warp {

using warp::Grids;
using warp::Line;

// What warp::Displaced is for a displacement alone; without one, u is 0.
template <int D, typename T, bool displaced>
struct Mapped {
  using Type = T;
  const double* matrix;   // (N, D, D + 1)
  const T* displacement;  // (N, D, *to), or null

  struct Points {
    Anchor<D, T> anchor;
    int32_t begin;
    const T* component;
    int64_t stride;

    DIFFREG_INLINE T operator()(int32_t x, T* point) const {
      T step[D];
      for (int k = 0; k < D; ++k) {
        step[k] = k == D - 1 ? static_cast<T>(x - begin) : T(0);
        if constexpr (displaced) step[k] += component[k * stride + x];
      }
      return anchor.point(step, point);
    }
  };

  Points points(const Grids<D>& grids, const Line<D>& line, int64_t begin) const {
    int32_t voxel[D];
    for (int k = 0; k < D; ++k) voxel[k] = static_cast<int32_t>(line.index[k]);
    voxel[D - 1] = static_cast<int32_t>(begin);
    return {anchor(line.sample, voxel), voxel[D - 1], component(grids, line), grids.to_voxels};
  }

  Anchor<D, T> anchor(int64_t sample, const int32_t* voxel) const {
    double of_sample[D][D + 1];
    std::copy_n(matrix + sample * D * (D + 1), D * (D + 1), &of_sample[0][0]);
    return {of_sample, voxel};
  }
  const T* component(const Grids<D>& grids, const Line<D>& line) const {
    return displaced ? displacement + line.sample * D * grids.to_voxels + line.voxel : nullptr;
  }
};

// Adds a line's part to the gradient to the map: the sum of the gradient along each axis of moving
// times what the map multiplies, p + u(p) and 1. `along` is (D, *to[D - 1]).
template <int D, typename T, bool displaced>
void add_line(const Grids<D>& grids, const Mapped<D, T, displaced>& field, const Line<D>& line,
              const T* along, double* sums) {  // (D, D + 1)
  const int64_t width = grids.to[D - 1];
  double of_voxels[2 * D] = {};
  sum_row<T>(
      0, width,
      [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA {
        for (int k = 0; k < D; ++k) {
          out[k] = along[k * width + x];
          out[D + k] = along[k * width + x] * static_cast<T>(static_cast<int32_t>(x));
        }
      },
      of_voxels);
  double of_shifts[D * D] = {};
  if constexpr (displaced) {
    const T* component = field.component(grids, line);
    sum_row<T>(
        0, width,
        [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA {
          for (int k = 0; k < D; ++k) {
            for (int j = 0; j < D; ++j) {
              const T shift = component[j * grids.to_voxels + x];
              out[k * D + j] = warp::passed_on(along[k * width + x], shift);
            }
          }
        },
        of_shifts);
  }
  for (int k = 0; k < D; ++k) {
    double* row = sums + k * (D + 1);
    for (int j = 0; j < D; ++j) {
      row[j] +=
          of_shifts[k * D + j] + (j == D - 1 ? of_voxels[D + k] : line.index[j] * of_voxels[k]);
    }
    row[D] += of_voxels[k];
  }
}

}  // namespace diffreg::affine_warp
