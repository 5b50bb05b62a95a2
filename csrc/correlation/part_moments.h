// Moments of parts of two images, merged exactly (Chan, Golub and LeVeque).
#pragma once

#include "correlation.h"

namespace diffreg::correlation {

// Of a part of an image: weight, means, and sums of squares and products about the means.
struct PartMoments {
  double weight = 0, mean_warped = 0, mean_fixed = 0;
  double warped_warped = 0, fixed_fixed = 0, product = 0;

  DIFFREG_HD void add(const PartMoments& part) {
    if (part.weight == 0) return;
    const double whole = weight + part.weight, share = part.weight / whole;
    const double b = part.mean_warped - mean_warped, a = part.mean_fixed - mean_fixed;
    const double spread = weight * share;
    warped_warped += part.warped_warped + spread * (b * b);
    fixed_fixed += part.fixed_fixed + spread * (a * a);
    product += part.product + spread * (a * b);
    mean_warped += share * b;
    mean_fixed += share * a;
    weight = whole;
  }

  DIFFREG_HD Moments moments(double epsilon) const {
    const auto centred = [&](double sum, double mean) {
      return Moments::without_rounding(sum, sum + weight * mean * mean, epsilon);
    };
    return {mean_warped, mean_fixed, centred(warped_warped, mean_warped),
            centred(fixed_fixed, mean_fixed), product};
  }
};

// From sums over voxels of the weight, and of b, a, b b, a a and a b, each times the weight, where
// b and a are the images shifted by values that lie close to their means.
DIFFREG_HD PartMoments moments_about(double shift_warped, double shift_fixed, double weight,
                                     const double* sums) {
  PartMoments part;
  if (weight == 0) return part;
  const double b = sums[0] / weight, a = sums[1] / weight;
  part.weight = weight;
  part.mean_warped = shift_warped + b;
  part.mean_fixed = shift_fixed + a;
  part.warped_warped = sums[2] - b * sums[0];
  part.fixed_fixed = sums[3] - a * sums[1];
  part.product = sums[4] - b * sums[1];
  return part;
}

}  // namespace diffreg::correlation
