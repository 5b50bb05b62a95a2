// eta * mean |grad I|, floored at max(1e-6 max |I|, smallest normal).
#pragma once

#include "../common/host_device.h"

namespace diffreg::gradient_scale {

template <int D, typename T>
DIFFREG_HD T squares(const T* g) {
  T sum = g[0] * g[0];
  DIFFREG_UNROLL
  for (int k = 1; k < D; ++k) sum += g[k] * g[k];
  return sum;
}

template <int D, typename T>
DIFFREG_HD T magnitude(const T* g) {
  return square_root(squares<D>(g));
}

// 1 / |g| out of its squares, which times g is what |g| passes on: its direction. 0 where there is
// none.
template <typename T>
DIFFREG_HD T inverse_magnitude(T squares) {
  return squares < kSmallestNormal<T> ? T(0) : inverse_root(squares);
}

DIFFREG_HD double floor_of(double largest, double smallest_normal) {
  return 1e-6 * largest > smallest_normal ? 1e-6 * largest : smallest_normal;
}

}  // namespace diffreg::gradient_scale
