// The launchers of affine_warp.cu, of images (D = 2) and volumes (D = 3). All tensors are
// contiguous; a displacement that is null is 0, a gradient that is null is one that nobody asked
// for.
#pragma once

#include "../warp/warp_cuda.h"
#include "affine_warp.h"

namespace diffreg::affine_warp {

using warp::Problem;

// Linear or cubic.
template <int D, typename S>
void launch_forward(const Problem<D>& problem,
                    const S* moving,        // (N or 1, C, *from)
                    const double* matrix,   // (N, D, D + 1)
                    const S* displacement,  // (N, D, *to) or null
                    S* warped,              // (N, C, *to)
                    void* stream);

template <int D, typename V, typename U>
void launch_nearest(const Problem<D>& problem, V nan,
                    const V* moving,        // (N or 1, C, *from)
                    const double* matrix,   // (N, D, D + 1)
                    const U* displacement,  // (N, D, *to) or null
                    V* warped,              // (N, C, *to)
                    void* stream);

// Doubles of workspace for the gradient to the map.
template <int D>
int64_t backward_doubles(const Problem<D>& problem);

template <int D, typename S>
void launch_backward(const Problem<D>& problem,
                     const S* gradient,      // (N, C, *to)
                     const S* moving,        // (N or 1, C, *from)
                     const double* matrix,   // (N, D, D + 1)
                     const S* displacement,  // (N, D, *to) or null
                     double* workspace,      // (backward_doubles) or null
                     double* grad_matrix,    // (N, D, D + 1) or null
                     S* grad_displacement,   // (N, D, *to) or null
                     void* stream);

}  // namespace diffreg::affine_warp
