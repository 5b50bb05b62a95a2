// f = 1 - c^2 / (max(v, g) max(r, g)), c, v, r the covariance and variances of W and R in a window,
// g = 1e-5, and what its gradient needs of each window. Called by local_correlation_cpu.cpp and
// local_correlation.cu.
#pragma once

#include "../common/host_device.h"

namespace diffreg::local_correlation {

constexpr int kTerms = 5;
constexpr double kGuard = 1e-5;  // assumes images in [0, 1]

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
  double count;

  // sums: W, R, W^2, R^2, W R over the window.
  DIFFREG_HD Window(const double* sums, double voxels) : count(voxels) {
    mean_warped = sums[0] / count;
    mean_fixed = sums[1] / count;
    variance_warped = sums[2] / count - mean_warped * mean_warped;
    variance_fixed = sums[3] / count - mean_fixed * mean_fixed;
    covariance = sums[4] / count - mean_warped * mean_fixed;
  }

  DIFFREG_HD static double guarded(double variance) {
    return variance > kGuard || variance != variance ? variance : kGuard;
  }
  DIFFREG_HD double value() const {
    return 1 - covariance * covariance / (guarded(variance_warped) * guarded(variance_fixed));
  }

  // df/dW_j = -cross (R_j - mean R) + own (W_j - mean W) for every voxel j of the window, where
  // own = 0 while the variance is guarded. To the fixed image with the roles exchanged.
  DIFFREG_HD double cross() const {
    return 2 * covariance / (guarded(variance_warped) * guarded(variance_fixed) * count);
  }
  DIFFREG_HD double own_warped() const { return own(variance_warped); }
  DIFFREG_HD double own_fixed() const { return own(variance_fixed); }

  // Box sums of these five turn the windows' contributions into one expression a voxel.
  DIFFREG_HD void gradient_terms(double scale, double* terms) const {
    const double by_other = scale * cross();
    const double by_warped = scale * own_warped(), by_fixed = scale * own_fixed();
    terms[0] = by_other;
    terms[1] = by_warped;
    terms[2] = by_other * mean_fixed - by_warped * mean_warped;
    terms[3] = by_fixed;
    terms[4] = by_other * mean_warped - by_fixed * mean_fixed;
  }

 private:
  DIFFREG_HD double own(double variance) const {
    return variance <= kGuard ? 0 : cross() * covariance / variance;
  }
};

// The gradients at a voxel of values w and r, from the box sums of gradient_terms.
DIFFREG_HD double gradient_to_warped(const double* sum, double w, double r) {
  return sum[1] * w - sum[0] * r + sum[2];
}
DIFFREG_HD double gradient_to_fixed(const double* sum, double w, double r) {
  return sum[3] * r - sum[0] * w + sum[4];
}

}  // namespace diffreg::local_correlation
