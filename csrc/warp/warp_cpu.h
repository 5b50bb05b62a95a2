// The CPU driver's work, for operators that are made of several.
#pragma once

#include "arguments.h"

namespace diffreg::warp {

// The warped image (N, C, *to) of contiguous tensors.
Tensor warped_image(const Tensor& moving, const Tensor& displacement, const Sampling& sampling);

// Adds the gradients to those of the two that are not null; where it does not `accumulate`, that to
// the displacement is overwritten instead, but left as it is where the upstream gradient is empty.
// A mask (N, 1, *to), contiguous, of linear sampling: what is not finite of the latter where the
// weight is 0 is 0.
void add_gradients(const Tensor& gradient, const Tensor& moving, const Tensor& displacement,
                   const Sampling& sampling, Tensor* to_moving, Tensor* to_displacement,
                   bool accumulate, const Tensor* mask = nullptr);

}  // namespace diffreg::warp
