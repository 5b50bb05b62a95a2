// The launchers of local_correlation.cu. All tensors are contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/storage.h"
#include "local_correlation.h"

namespace diffreg::local_correlation {

struct Problem {
  int64_t samples, channels, height, width;
  int64_t radius;  // at most the longer side

  int64_t planes() const { return samples * channels; }
};

template <typename S>
struct Images {
  const S* warped;            // (N, C, H, W)
  const S* fixed;             // (N, C, H, W)
  const Arithmetic<S>* mask;  // (N, 1, H, W) or null
};

int64_t forward_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images,
                    double* workspace,     // (forward_doubles)
                    Arithmetic<S>* value,  // (N)
                    void* stream);

int64_t backward_doubles(const Problem& problem, bool masked);

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images,
                     const Arithmetic<S>* gradient,  // (N)
                     double* workspace,              // (backward_doubles)
                     S* grad_warped,                 // (N, C, H, W) or null
                     S* grad_fixed,                  // (N, C, H, W) or null
                     void* stream);

}  // namespace diffreg::local_correlation
