// E1 = sum_k mean |d_k u|^2, E2 = sum_kl mean |d_kl u|^2 on compact stencils, E_det = mean psi(J)
// over the corners of all cells. Called by deformation_energy_cpu.cpp.
#pragma once

#include <cmath>

#include "../common/host_device.h"

namespace diffreg::deformation_energy {

enum class PenaltyKind { hyperelastic, log2, hinge, relu };

// psi(J) above the threshold, its tangent below: the raw hyperelastic psi has a second minimum at
// J = -1 that pulls folds deeper.
template <typename T, PenaltyKind kind>
struct Penalty {
  T threshold;

  DIFFREG_HD T value(T J) const {
    if constexpr (kind == PenaltyKind::hinge)
      return J < threshold ? square(threshold - J) : nan_or_zero(J);
    if constexpr (kind == PenaltyKind::relu) return J < 0 ? -J : nan_or_zero(J);
    if (J >= threshold) return raw(J);
    return raw(threshold) + raw_slope(threshold) * (J - threshold);
  }

  DIFFREG_HD T slope(T J) const {
    if constexpr (kind == PenaltyKind::hinge)
      return J < threshold ? 2 * (J - threshold) : nan_or_zero(J);
    if constexpr (kind == PenaltyKind::relu) return J < 0 ? T(-1) : nan_or_zero(J);
    return raw_slope(J >= threshold || J != J ? J : threshold);
  }

 private:
  DIFFREG_HD static T square(T x) { return x * x; }
  DIFFREG_HD static T nan_or_zero(T J) { return J == J ? T(0) : J; }

  DIFFREG_HD static T raw(T J) {
    if constexpr (kind == PenaltyKind::log2) return square(std::log(J));
    return square(square(J - 1) / J);
  }
  DIFFREG_HD static T raw_slope(T J) {
    if constexpr (kind == PenaltyKind::log2) return 2 * std::log(J) / J;
    const T step = J - 1;
    return 2 * step * step * step * (J + 1) / (J * J * J);
  }
};

}  // namespace diffreg::deformation_energy
