// The CPU driver's work, for operators that are made of several.
#pragma once

#include <optional>
#include <vector>

#include "../common/check.h"

namespace diffreg::local_correlation {

// All contiguous; the gradient goes to `own`.
struct Inputs {
  Tensor own, other;  // (N, C, *S)
  int64_t window;
  std::optional<Tensor> mask;  // (N, 1, *S)
};

// The measure of every sample; where `gradient` is not null, that to `own` times every sample's
// factor is added to it.
std::vector<double> measure(const Inputs& inputs, const std::vector<double>& factors,
                            Tensor* gradient);

}  // namespace diffreg::local_correlation
