// One value a cell out of its corner determinants, and the adjoint of that reduction; the
// determinants themselves stand in common/determinant.h.
#pragma once

#include "../common/host_device.h"
#include "../common/options.h"

namespace diffreg::jacobian_determinant {

enum class Reduce { none, min, mean };
constexpr Named<Reduce> kReduces[] = {
    {"none", Reduce::none}, {"min", Reduce::min}, {"mean", Reduce::mean}};

// The first of the smallest corners; a NaN corner wins, as in torch.min.
template <typename T>
struct Smallest {
  T value;
  int index;

  DIFFREG_HD explicit Smallest(const T* corner) : value(corner[0]), index(0) {
    for (int k = 1; k < 4; ++k) {
      if (value == value && !(corner[k] >= value)) {
        value = corner[k];
        index = k;
      }
    }
  }
};

template <typename T>
DIFFREG_HD T mean(const T* corner) {
  return ((corner[0] + corner[1]) + (corner[2] + corner[3])) / 4;
}

template <typename T>
DIFFREG_HD T reduced(Reduce reduce, const T* corner) {
  return reduce == Reduce::min ? Smallest<T>(corner).value : mean(corner);
}

// The adjoint of reduced(): corner holds the determinants, and then the gradient to them.
template <typename T>
DIFFREG_HD void spread(Reduce reduce, T upstream, T* corner) {
  const int chosen = Smallest<T>(corner).index;
  for (int k = 0; k < 4; ++k) {
    corner[k] = reduce == Reduce::mean ? upstream / 4 : (k == chosen ? upstream : T(0));
  }
}

}  // namespace diffreg::jacobian_determinant
