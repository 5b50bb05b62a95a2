// One value a cell out of its corner determinants, and the adjoint of that reduction.
// Called by jacobian_determinant_cpu.cpp; the determinants themselves stand in
// common/determinant.h.
#pragma once

#include "../common/host_device.h"

namespace diffreg::jacobian_determinant {

enum class Reduce { none, min, mean };

// The first of the smallest corners; a NaN corner wins, as in torch.min.
template <typename T>
DIFFREG_HD int smallest(const T* corner) {
  int at = 0;
  for (int k = 1; k < 4; ++k) {
    if (corner[at] == corner[at] && !(corner[k] >= corner[at])) at = k;
  }
  return at;
}

template <typename T>
DIFFREG_HD T mean(const T* corner) {
  return ((corner[0] + corner[1]) + (corner[2] + corner[3])) / 4;
}

}  // namespace diffreg::jacobian_determinant
