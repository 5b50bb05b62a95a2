// The launchers of warp.cu, of images (D = 2) and volumes (D = 3). All tensors are contiguous; a
// pointer that is null stands for a gradient that nobody asked for.
#pragma once

#include "../common/storage.h"
#include "warp.h"

namespace diffreg::warp {

template <int D>
struct Problem {
  int64_t samples, channels;
  int32_t from[D], to[D];  // sizes of the moving and of the fixed grid
  int64_t from_voxels = 1, to_voxels = 1;
  int64_t image_stride;  // from a sample's images to the next one's; 0 where all read the same
  Sampling sampling;

  Problem(int64_t samples, int64_t channels, const int64_t* from_size, const int64_t* to_size,
          const Sampling& sampling)
      : samples(samples), channels(channels), sampling(sampling) {
    for (int k = 0; k < D; ++k) {
      from[k] = static_cast<int32_t>(from_size[k]);
      to[k] = static_cast<int32_t>(to_size[k]);
      from_voxels *= from[k];
      to_voxels *= to[k];
    }
    image_stride = channels * from_voxels;
  }
};

// A voxel of any dtype is one of uint8_t, uint16_t, uint32_t, uint64_t or this.
struct alignas(16) TwoWords {
  uint64_t low, high;
};

// Linear or cubic. G is S or, of linear alone, the arithmetic's type, for what is not to be
// rounded.
template <int D, typename S, typename G>
void launch_forward(const Problem<D>& problem,
                    const S* moving,        // (N, C, *from)
                    const S* displacement,  // (N, D, *to)
                    G* warped,              // (N, C, *to)
                    void* stream);

template <int D, typename V, typename U>
void launch_nearest(const Problem<D>& problem, V nan,
                    const V* moving,        // (N, C, *from)
                    const U* displacement,  // (N, D, *to)
                    V* warped,              // (N, C, *to)
                    void* stream);

// The gradient to moving adds up in any order. That to the displacement is added to what is there
// where it is to `accumulate`. G is S or, of linear interpolation, the type of the arithmetic, for
// what is not to be rounded yet; that may have a mask: what is not finite of the latter gradient
// where the weight is 0 is 0.
template <int D, typename S, typename G>
void launch_backward(const Problem<D>& problem,
                     const G* gradient,           // (N, C, *to)
                     const S* moving,             // (N, C, *from)
                     const S* displacement,       // (N, D, *to)
                     Arithmetic<S>* grad_moving,  // (N, C, *from) or null
                     G* grad_displacement,        // (N, D, *to) or null
                     bool accumulate, void* stream,
                     const Arithmetic<S>* mask = nullptr);  // (N, 1, *to)

// Doubles of workspace for the gradient to moving in a fixed order.
template <int D>
int64_t gather_doubles(const Problem<D>& problem);

template <int D, typename S>
void launch_gather(const Problem<D>& problem,
                   const S* gradient,           // (N, C, *to)
                   const S* displacement,       // (N, D, *to)
                   double* workspace,           // (gather_doubles)
                   Arithmetic<S>* grad_moving,  // (N, C, *from)
                   void* stream);

}  // namespace diffreg::warp
