// The launchers of gradient_scale.cu. All tensors are contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/storage.h"
#include "gradient_scale.h"

namespace diffreg::gradient_scale {

struct Problem {
  int64_t samples, channels, height, width;
  double eta;
  double smallest_normal;  // of the arithmetic

  int64_t planes() const { return samples * channels; }
};

int64_t forward_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem,
                    const S* image,             // (N, C, H, W)
                    const Arithmetic<S>* mask,  // (N, 1, H, W) or null
                    double* workspace,          // (forward_doubles)
                    Arithmetic<S>* scale,       // (N)
                    void* stream);

int64_t backward_doubles(const Problem& problem);

template <typename S>
void launch_backward(const Problem& problem,
                     const Arithmetic<S>* gradient,  // (N)
                     const S* image,                 // (N, C, H, W)
                     const Arithmetic<S>* mask,      // (N, 1, H, W) or null
                     double* workspace,              // (backward_doubles)
                     S* grad_image,                  // (N, C, H, W)
                     void* stream);

}  // namespace diffreg::gradient_scale
