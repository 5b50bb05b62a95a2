// The launchers of correlation.cu. All tensors are contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/storage.h"
#include "correlation.h"

namespace diffreg::correlation {

struct Problem {
  int64_t samples, channels, voxels;  // voxels of one channel
  double epsilon;                     // of the arithmetic
};

template <typename S>
struct Images {
  const S* warped;            // (N, C, *S)
  const S* fixed;             // (N, C, *S)
  const Arithmetic<S>* mask;  // (N, 1, *S) or null
};

template <typename S>
int64_t forward_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images,
                    double* workspace,     // (forward_doubles)
                    Arithmetic<S>* value,  // (N)
                    double* moments,       // (N, 5)
                    void* stream);

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images,
                     const Arithmetic<S>* gradient,  // (N)
                     const double* moments,          // (N, 5)
                     S* grad_warped,                 // (N, C, *S) or null
                     S* grad_fixed,                  // (N, C, *S) or null
                     bool accumulate,                // to the gradients that are there
                     void* stream);

}  // namespace diffreg::correlation
