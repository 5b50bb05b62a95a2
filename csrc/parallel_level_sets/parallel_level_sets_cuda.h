// The launchers of parallel_level_sets.cu. All tensors are contiguous.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/storage.h"
#include "parallel_level_sets.h"

namespace diffreg::parallel_level_sets {

template <int D>
struct Problem {
  int64_t samples, channels, size[D];
  Variant variant;

  Problem(int64_t samples, int64_t channels, const int64_t* sizes, Variant variant)
      : samples(samples), channels(channels), variant(variant) {
    std::copy_n(sizes, D, size);
  }
};

template <typename S>
struct Images {
  const S* warped;  // (N, C, *S)
  const S* fixed;   // (N, C, *S)
  PerSample<Arithmetic<S>> eps_warped, eps_fixed;
  const Arithmetic<S>* mask;  // (N, 1, *S) or null
};

template <typename S, int D>
int64_t forward_doubles(const Problem<D>& problem);

template <int D, typename S>
void launch_forward(const Problem<D>& problem, const Images<S>& images,
                    double* workspace,     // (forward_doubles)
                    Arithmetic<S>* value,  // (N)
                    void* stream);

// 0 without a mask.
template <int D>
int64_t backward_doubles(const Problem<D>& problem, bool masked);

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Images<S>& images,
                     const Arithmetic<S>* gradient,  // (N)
                     double* workspace,              // (backward_doubles)
                     S* grad_warped,                 // (N, C, *S) or null
                     S* grad_fixed,                  // (N, C, *S) or null
                     bool accumulate,                // to the gradients that are there
                     void* stream);

}  // namespace diffreg::parallel_level_sets
