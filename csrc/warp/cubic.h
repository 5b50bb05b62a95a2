// CPU only: separable cubic interpolation by Keys' kernel with a = -3/4, as grid_sample's bicubic
// has it, in any number of axes. Plain loops, one voxel after the other.
#pragma once

#include "warp_rows.h"

namespace diffreg::warp {

// The four voxels of one axis around a coordinate, those that a padding moves or takes away
// included, with their weights and the weights' derivatives.
template <typename T>
struct CubicTaps {
  static constexpr int kCount = 4;
  int32_t index[kCount];
  T weight[kCount], slope[kCount];

  CubicTaps(T coordinate, T bad, int32_t size, Padding padding) {
    const T last = static_cast<T>(size - 1);
    const Mirrored<T> mirrored(coordinate, last);
    const bool mirrors = padding == Padding::reflection;
    T at = mirrors ? mirrored.coordinate : coordinate;
    // Three voxels beyond the image nothing changes any more; what is not finite goes there, too.
    at = at > -3 ? at : T(-3);
    at = at < last + 3 ? at : last + 3;
    const T low = std::floor(at), t = at - low;
    const T distance[kCount] = {t + 1, t, 1 - t, 2 - t};
    for (int k = 0; k < kCount; ++k) {
      const int32_t place = static_cast<int32_t>(low) + k - 1;
      const bool outside = place < 0 || place >= size;
      const bool counts = !(outside && padding == Padding::zeros);
      const T towards = k < 2 ? T(1) : T(-1);
      weight[k] = (counts ? kernel(distance[k]) : T(0)) + bad;
      slope[k] = (counts ? towards * derivative(distance[k]) : T(0)) + bad;
      if (mirrors) slope[k] *= mirrored.sign;
      const T held = mirrors ? Mirrored<T>(static_cast<T>(place), last).coordinate
                             : std::clamp(static_cast<T>(place), T(0), last);
      index[k] = static_cast<int32_t>(held);
    }
  }

 private:
  static constexpr T kA = T(-0.75);

  static T kernel(T d) {
    return d <= 1 ? ((kA + 2) * d - (kA + 3)) * d * d + 1 : ((d - 5) * d + 8) * d * kA - 4 * kA;
  }
  static T derivative(T d) {
    return d <= 1 ? (3 * (kA + 2) * d - 2 * (kA + 3)) * d : ((3 * d - 10) * d + 8) * kA;
  }
};

// Sum over the 4^D voxels around a point of voxel times weights; along axis `by` the slopes stand
// in for the weights. A voxel of weight 0 does not count, so that warp(I, 0) is I.
template <int D, int Axis = 0, typename T>
T contract(const T* image, const int64_t* stride, const CubicTaps<T>* at, int by) {
  if constexpr (Axis == D) {
    return *image;
  } else {
    const T* factors = Axis == by ? at[Axis].slope : at[Axis].weight;
    T sum = -T(0);  // warp(I, 0) is I to the bit, -0 too
    for (int k = 0; k < CubicTaps<T>::kCount; ++k) {
      if (factors[k] == 0) continue;
      sum += factors[k] *
             contract<D, Axis + 1>(image + at[Axis].index[k] * stride[Axis], stride, at, by);
    }
    return sum;
  }
}

// Adds a gradient to the voxels around a point whose index on axis 0 is in [first, end).
template <int D, int Axis = 0, typename T>
void splat(T* image, const int64_t* stride, const CubicTaps<T>* at, T gradient, int64_t first,
           int64_t end) {
  if constexpr (Axis == D) {
    *image += gradient;
  } else {
    for (int k = 0; k < CubicTaps<T>::kCount; ++k) {
      const int64_t index = at[Axis].index[k];
      if (at[Axis].weight[k] == 0 || (Axis == 0 && (index < first || index >= end))) continue;
      splat<D, Axis + 1>(image + index * stride[Axis], stride, at, at[Axis].weight[k] * gradient,
                         first, end);
    }
  }
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
      const auto along = [&](int k) {
        const T from = static_cast<T>(k == D - 1 ? x : line.index[k]);
        return CubicTaps<T>(from + shift[k], bad, static_cast<int32_t>(grids.from[k]), padding);
      };
      if constexpr (D == 2) {
        const CubicTaps<T> at[] = {along(0), along(1)};
        run(line.voxel + x, at);
      } else {
        const CubicTaps<T> at[] = {along(0), along(1), along(2)};
        run(line.voxel + x, at);
      }
    }
  });
}

}  // namespace diffreg::warp
