// out(p) = moving(M (p + u(p), 1)): where the voxels around an anchor land, and what the gradient
// there gives to the displacement.
#pragma once

#include "../common/host_device.h"
#include "../warp/warp.h"

namespace diffreg::affine_warp {

// The point where an anchor voxel lands, and the map around it. The point is found in double and
// kept in two parts, so that one near to it is rounded once, however far from the origin it is;
// whole numbers stay whole.
template <int D, typename T>
struct Anchor {
  T high[D], low[D], linear[D][D];  // double has no low part

  Anchor() = default;
  DIFFREG_HD Anchor(const double (&matrix)[D][D + 1], const int32_t* voxel) {
    for (int k = 0; k < D; ++k) {
      double point = matrix[k][D];
      for (int j = 0; j < D; ++j) {
        point += matrix[k][j] * voxel[j];
        linear[k][j] = static_cast<T>(matrix[k][j]);
      }
      high[k] = static_cast<T>(point);
      if constexpr (sizeof(T) < 8) low[k] = static_cast<T>(point - static_cast<double>(high[k]));
    }
  }

  // Writes the point where lands what is a step away from the anchor; gives 0, or NaN where it is
  // not finite, as from a map or a displacement that is not.
  DIFFREG_HD T point(const T* step, T* found) const {
    T bad = 0;
    DIFFREG_UNROLL
    for (int k = 0; k < D; ++k) {
      T moved = linear[k][0] * step[0];
      DIFFREG_UNROLL
      for (int j = 1; j < D; ++j) moved += linear[k][j] * step[j];
      if constexpr (sizeof(T) < 8) moved += low[k];
      found[k] = high[k] + moved;
      bad += warp::poison(found[k]);
    }
    return bad;
  }
};

// The gradient to component j of the displacement, given that along each axis of moving.
template <int D, typename T>
DIFFREG_HD T to_displacement(const T (&linear)[D][D], const T* along, int j) {
  T sum = warp::passed_on(along[0], linear[0][j]);
  DIFFREG_UNROLL
  for (int k = 1; k < D; ++k) sum += warp::passed_on(along[k], linear[k][j]);
  return sum;
}

}  // namespace diffreg::affine_warp
