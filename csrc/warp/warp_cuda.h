// The launchers of warp.cu. All tensors are contiguous; a pointer that is null stands for a
// gradient that nobody asked for.
#pragma once

#include "../common/dimensions.h"
#include "../common/storage.h"
#include "warp.h"

namespace diffreg::warp {

struct Problem {
  int64_t samples, channels;
  int64_t from[D], to[D];  // sizes of the moving and of the fixed grid
  Sampling sampling;

  DIFFREG_HD int64_t from_voxels() const { return from[0] * from[1]; }
  DIFFREG_HD int64_t to_voxels() const { return to[0] * to[1]; }
};

// A voxel of any dtype is one of uint8_t, uint16_t, uint32_t, uint64_t or this.
struct alignas(16) TwoWords {
  uint64_t low, high;
};

template <typename S>
void launch_forward(const Problem& problem,
                    const S* moving,        // (N, C, *from)
                    const S* displacement,  // (N, D, *to)
                    S* warped,              // (N, C, *to)
                    void* stream);

template <typename V, typename U>
void launch_nearest(const Problem& problem, V nan,
                    const V* moving,        // (N, C, *from)
                    const U* displacement,  // (N, D, *to)
                    V* warped,              // (N, C, *to)
                    void* stream);

// The gradient to moving adds up in any order.
template <typename S>
void launch_backward(const Problem& problem,
                     const S* gradient,           // (N, C, *to)
                     const S* moving,             // (N, C, *from)
                     const S* displacement,       // (N, D, *to)
                     Arithmetic<S>* grad_moving,  // (N, C, *from) or null
                     S* grad_displacement,        // (N, D, *to) or null
                     void* stream);

// Doubles of workspace for the gradient to moving in a fixed order.
int64_t gather_doubles(const Problem& problem);

template <typename S>
void launch_gather(const Problem& problem,
                   const S* gradient,           // (N, C, *to)
                   const S* displacement,       // (N, D, *to)
                   double* workspace,           // (gather_doubles)
                   Arithmetic<S>* grad_moving,  // (N, C, *from)
                   void* stream);

}  // namespace diffreg::warp
