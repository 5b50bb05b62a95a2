// The CPU driver's work, for operators that are made of several.
#pragma once

#include "arguments.h"

namespace diffreg::warp {

// The warped image (N, C, *to) of contiguous tensors.
Tensor warped_image(const Tensor& moving, const Tensor& displacement, const Sampling& sampling);

// Adds the gradients to those of the two that are not null.
void add_gradients(const Tensor& gradient, const Tensor& moving, const Tensor& displacement,
                   const Sampling& sampling, Tensor* to_moving, Tensor* to_displacement);

}  // namespace diffreg::warp
