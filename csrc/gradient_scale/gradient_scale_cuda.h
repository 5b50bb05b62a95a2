// The launchers of gradient_scale.cu. All tensors are contiguous.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/storage.h"
#include "gradient_scale.h"

namespace diffreg::gradient_scale {

template <int D>
struct Problem {
  int64_t samples, channels, size[D];
  double eta;
  double smallest_normal;  // of the arithmetic

  Problem(int64_t samples, int64_t channels, const int64_t* sizes, double eta,
          double smallest_normal)
      : samples(samples), channels(channels), eta(eta), smallest_normal(smallest_normal) {
    std::copy_n(sizes, D, size);
  }
};

template <typename S, int D>
int64_t forward_doubles(const Problem<D>& problem);

template <int D, typename S>
void launch_forward(const Problem<D>& problem,
                    const S* image,             // (N, C, *S)
                    const Arithmetic<S>* mask,  // (N, 1, *S) or null
                    double* workspace,          // (forward_doubles)
                    Arithmetic<S>* scale,       // (N)
                    void* stream);

template <typename S, int D>
int64_t backward_doubles(const Problem<D>& problem, bool masked);

template <int D, typename S>
void launch_backward(const Problem<D>& problem,
                     const Arithmetic<S>* gradient,  // (N)
                     const S* image,                 // (N, C, *S)
                     const Arithmetic<S>* mask,      // (N, 1, *S) or null
                     double* workspace,              // (backward_doubles)
                     S* grad_image,                  // (N, C, *S)
                     void* stream);

}  // namespace diffreg::gradient_scale
