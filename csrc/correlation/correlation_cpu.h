// The CPU driver's work, for operators that are made of several.
#pragma once

#include <optional>
#include <vector>

#include "../common/check.h"
#include "correlation.h"

namespace diffreg::correlation {

// All contiguous.
struct Inputs {
  Tensor warped, fixed;        // (N, C, *S)
  std::optional<Tensor> mask;  // (N, 1, *S)
};

// The measure of every sample; where `gradient` is not null, that to the warped image times every
// sample's factor is added to it.
std::vector<double> measure(const Inputs& inputs, const std::vector<double>& factors,
                            Tensor* gradient);

}  // namespace diffreg::correlation
