// The launchers of jacobian_determinant.cu. All tensors are contiguous, fields have cells.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/storage.h"
#include "jacobian_determinant.h"

namespace diffreg::jacobian_determinant {

template <int D>
struct Problem {
  int64_t samples, size[D];
  Reduce reduce;

  Problem(int64_t samples, const int64_t* sizes, Reduce reduce) : samples(samples), reduce(reduce) {
    std::copy_n(sizes, D, size);
  }
};

template <int D, typename S>
void launch_forward(const Problem<D>& problem,
                    const S* displacement,       // (N, D, *S)
                    Arithmetic<S>* determinant,  // (N, values, *cells), or (N, *cells) of one
                    void* stream);

// Not for Reduce::bound.
template <int D, typename S>
void launch_backward(const Problem<D>& problem,
                     const Arithmetic<S>* gradient,  // as determinant above
                     const S* displacement,          // (N, D, *S)
                     S* grad_displacement,           // (N, D, *S)
                     void* stream);

}  // namespace diffreg::jacobian_determinant
