// The CPU driver's work, for operators that are made of several.
#pragma once

#include <optional>
#include <vector>

#include "../common/check.h"
#include "parallel_level_sets.h"

namespace diffreg::parallel_level_sets {

// All contiguous; the gradient goes to `own`.
struct Inputs {
  Tensor own, other;          // (N, C, *S)
  Tensor eps_own, eps_other;  // (N)
  Variant variant;
  std::optional<Tensor> mask;  // (N, 1, *S)
};

// The measure of every sample; where `gradient` is not null, that to `own` times every sample's
// factor is added to it.
std::vector<double> measure(const Inputs& inputs, const std::vector<double>& factors,
                            Tensor* gradient);

}  // namespace diffreg::parallel_level_sets
