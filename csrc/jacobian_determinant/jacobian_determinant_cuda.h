// The launchers of jacobian_determinant.cu. All tensors are contiguous, fields at least 2 x 2.
#pragma once

#include <cstdint>

#include "../common/storage.h"
#include "jacobian_determinant.h"

namespace diffreg::jacobian_determinant {

struct Problem {
  int64_t samples, height, width;
  Reduce reduce;

  int64_t planes() const { return samples; }
};

template <typename S>
void launch_forward(const Problem& problem,
                    const S* displacement,       // (N, 2, H, W)
                    Arithmetic<S>* determinant,  // (N, 4, H-1, W-1), or (N, H-1, W-1) where reduced
                    void* stream);

template <typename S>
void launch_backward(const Problem& problem,
                     const Arithmetic<S>* gradient,  // as determinant above
                     const S* displacement,          // (N, 2, H, W)
                     S* grad_displacement,           // (N, 2, H, W)
                     void* stream);

}  // namespace diffreg::jacobian_determinant
