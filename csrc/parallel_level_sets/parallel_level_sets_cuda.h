// The launchers of parallel_level_sets.cu. All tensors are contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/storage.h"
#include "parallel_level_sets.h"

namespace diffreg::parallel_level_sets {

struct Problem {
  int64_t samples, channels, height, width;
  Variant variant;

  int64_t planes() const { return samples * channels; }
};

template <typename S>
struct Images {
  const S* warped;                  // (N, C, H, W)
  const S* fixed;                   // (N, C, H, W)
  const Arithmetic<S>* eps_warped;  // (N)
  const Arithmetic<S>* eps_fixed;   // (N)
  const Arithmetic<S>* mask;        // (N, 1, H, W) or null
};

int64_t forward_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images,
                    double* workspace,     // (forward_doubles)
                    Arithmetic<S>* value,  // (N)
                    void* stream);

// 0 without a mask.
int64_t backward_doubles(const Problem& problem, bool masked);

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images,
                     const Arithmetic<S>* gradient,  // (N)
                     double* workspace,              // (backward_doubles)
                     S* grad_warped,                 // (N, C, H, W) or null
                     S* grad_fixed,                  // (N, C, H, W) or null
                     void* stream);

}  // namespace diffreg::parallel_level_sets
