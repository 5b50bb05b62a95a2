// f = 1 - c^2 / (max(v, g) max(r, g)), c, v, r the covariance and variances of W and R in a window,
// g = 1e-5, and what its gradient needs of each window.
#pragma once

#include "../common/host_device.h"

namespace diffreg::local_correlation {

constexpr int kTerms = 5;
constexpr double kGuard = 1e-5;  // assumes images in [0, 1]

// Voxels of the window around an index that lie inside an axis of that size.
template <typename Index>
DIFFREG_HD Index window_count(Index at, Index radius, Index size) {
  const auto clamped = [size](Index index) {
    return index < 0 ? 0 : (index < size ? index : size - 1);
  };
  return clamped(at + radius) - clamped(at - radius) + 1;
}

// What is summed over a window for its moments.
DIFFREG_HD void image_terms(double w, double r, double* terms) {
  terms[0] = w;
  terms[1] = r;
  terms[2] = w * w;
  terms[3] = r * r;
  terms[4] = w * r;
}

struct Window {
  double mean_warped, mean_fixed;
  double covariance, variance_warped, variance_fixed;  // population moments
  double per_voxel;                                    // 1 / voxels of the window
  double inverse;                                      // of the product of the guarded variances

  // sums: W, R, W^2, R^2, W R over the window.
  DIFFREG_HD Window(const double* sums, double per) : per_voxel(per) {
    mean_warped = sums[0] * per;
    mean_fixed = sums[1] * per;
    variance_warped = sums[2] * per - mean_warped * mean_warped;
    variance_fixed = sums[3] * per - mean_fixed * mean_fixed;
    covariance = sums[4] * per - mean_warped * mean_fixed;
    inverse = plain_quotient(1.0, guarded(variance_warped) * guarded(variance_fixed));
  }

  DIFFREG_HD static double guarded(double variance) {
    return variance > kGuard || variance != variance ? variance : kGuard;
  }
  // Rounding can take it below 0 where the images are equal; what is not a number stays so.
  DIFFREG_HD double value() const {
    const double apart = 1 - covariance * covariance * inverse;
    return apart < 0 ? 0 : apart;
  }

  // df/dW_j = -cross (R_j - mean R) + own (W_j - mean W) for every voxel j of the window, where
  // own = 0 while the variance is guarded. To the fixed image with the roles exchanged.
  DIFFREG_HD double cross() const { return 2 * covariance * inverse * per_voxel; }
  DIFFREG_HD double own_warped() const { return own(variance_warped, variance_fixed); }
  DIFFREG_HD double own_fixed() const { return own(variance_fixed, variance_warped); }

  // Box sums of these three turn the windows' contributions to the warped image into one
  // expression a voxel.
  DIFFREG_HD void gradient_terms(double scale, double& by_other, double& by_own,
                                 double& rest) const {
    by_other = scale * cross();
    by_own = scale * own_warped();
    rest = by_other * mean_fixed - by_own * mean_warped;
  }

  // And of these five, to both images.
  DIFFREG_HD void gradient_terms(double scale, double* terms) const {
    gradient_terms(scale, terms[0], terms[1], terms[2]);
    terms[3] = scale * own_fixed();
    terms[4] = terms[0] * mean_warped - terms[3] * mean_fixed;
  }

 private:
  // cross c / variance, where the variance is not guarded.
  DIFFREG_HD double own(double variance, double other) const {
    return variance <= kGuard ? 0 : cross() * covariance * (inverse * guarded(other));
  }
};

// The gradient at a voxel of values `own` and `other`, from the box sums of gradient_terms.
DIFFREG_HD double gradient_at(double by_other, double by_own, double rest, double own,
                              double other) {
  return by_own * own - by_other * other + rest;
}

}  // namespace diffreg::local_correlation
