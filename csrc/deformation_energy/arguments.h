// The options of deformation_energy, as both of its drivers have them.
#pragma once

#include "../common/check.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

struct Options {
  std::vector<double> spacing;  // (D), voxels
  PenaltyKind penalty;
  double threshold;
};

// Of a displacement that has been checked.
inline Options parse_options(const Tensor& displacement, const std::vector<double>& spacing,
                             const std::string& penalty, double threshold) {
  check_spacing(spacing, dimensions_of(displacement));
  return {spacing, parse("penalty", penalty, kPenalties), threshold};
}

}  // namespace diffreg::deformation_energy
