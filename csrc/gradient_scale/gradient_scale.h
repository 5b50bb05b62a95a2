// eta * mean |grad I|, floored at max(1e-6 max |I|, smallest normal).
#pragma once

#include "../common/host_device.h"

namespace diffreg::gradient_scale {

template <typename T>
DIFFREG_HD T magnitude(T g0, T g1) {
  return square_root(g0 * g0 + g1 * g1);
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
