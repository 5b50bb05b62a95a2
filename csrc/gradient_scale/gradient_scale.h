// eta * mean |grad I|, floored at max(1e-6 max |I|, smallest normal).
#pragma once

#include "../common/host_device.h"

namespace diffreg::gradient_scale {

template <int D, typename T>
DIFFREG_HD T magnitude(const T* g) {
  T squares = g[0] * g[0];
  DIFFREG_UNROLL
  for (int k = 1; k < D; ++k) squares += g[k] * g[k];
  return square_root(squares);
}

// What |g| passes on to one component: its direction, 0 where there is none.
template <typename T>
DIFFREG_HD T direction(T component, T magnitude) {
  return magnitude == 0 ? T(0) : quotient(component, magnitude);
}

DIFFREG_HD double floor_of(double largest, double smallest_normal) {
  return 1e-6 * largest > smallest_normal ? 1e-6 * largest : smallest_normal;
}

}  // namespace diffreg::gradient_scale
