// 1 - cc of W and R from centred moments, and its gradient, which is affine in (W, R).
#pragma once

#include <cmath>

#include "../common/host_device.h"

namespace diffreg::correlation {

constexpr int kMoments = 5;

// Weighted means, and sums of squares and products of a = R - mean R, b = W - mean W.
struct Moments {
  double mean_warped, mean_fixed;
  double warped_warped, fixed_fixed, product;

  // (8 eps)^2 sum R^2 is what rounding alone leaves of a constant image.
  DIFFREG_HD static double without_rounding(double centred, double raw, double epsilon) {
    return centred <= 64 * epsilon * epsilon * raw ? 0 : centred;
  }
  DIFFREG_HD bool constant() const { return warped_warped == 0 || fixed_fixed == 0; }
  // |a| |b|, so that the coefficient of equal images is 1 and their gradient 0, to the bit.
  DIFFREG_HD double norms() const { return fixed_fixed * std::sqrt(warped_warped / fixed_fixed); }
  DIFFREG_HD double coefficient() const { return constant() ? 0 : product / norms(); }
  // Rounding can take the coefficient of equal images past 1; what is not a number stays so.
  DIFFREG_HD double value() const {
    const double apart = 1 - coefficient();
    return apart < 0 ? 0 : apart;
  }

  // d(1 - cc)/dW = b slope_by_own(|b|^2) - a slope_by_other(); to the fixed image with the roles
  // exchanged.
  DIFFREG_HD double slope_by_own(double own_own) const {
    return constant() ? 0 : coefficient() / own_own;
  }
  DIFFREG_HD double slope_by_other() const { return constant() ? 0 : 1 / norms(); }
};

}  // namespace diffreg::correlation
