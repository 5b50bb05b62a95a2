// L = w_s S(moving o phi, fixed) + w_1 E1(u) + w_2 E2(u) + w_det E_det(u), phi = id + u, where S is
// a mixture of measures.
#pragma once

#include "../common/host_device.h"

namespace diffreg::registration_objective {

// The measures, in the order of the operator's argument `mixture`.
enum Measure { kSsd, kNcc, kLncc, kPls, kSmoothPls, kNgf, kMeasures };

// A sample's factors of the four terms, or the upstream gradients that take their place.
struct Weights {
  double similarity, diffusion, bending, determinant;
};

template <typename T>
DIFFREG_HD T squared_difference(T warped, T fixed) {
  return (warped - fixed) * (warped - fixed);
}
template <typename T>
DIFFREG_HD T squared_difference_slope(T warped, T fixed) {
  return 2 * (warped - fixed);
}

}  // namespace diffreg::registration_objective
