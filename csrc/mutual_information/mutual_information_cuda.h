// The launchers of mutual_information.cu. All tensors are contiguous.
#pragma once

#include <cstdint>

#include "../common/storage.h"
#include "mutual_information.h"

namespace diffreg::mutual_information {

struct Problem {
  int64_t samples, channels, voxels;  // voxels of one channel
  int64_t moving_channels, moving_voxels;
  Shape shape;
};

template <typename S>
struct Images {
  const S* warped;            // (N, C, *S)
  const S* fixed;             // (N, C, *S)
  const Arithmetic<S>* mask;  // (N, 1, *S) or null
  const S* moving;            // (N, moving channels, *any), or null: the warped image's range
};

int64_t forward_doubles(const Problem& problem);
int64_t backward_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images,
                    double* workspace,     // (forward_doubles)
                    Arithmetic<S>* value,  // (N)
                    double* histograms,    // (N, rows, columns)
                    double* ranges,        // (N, 4)
                    void* stream);

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images,
                     const Arithmetic<S>* gradient,  // (N)
                     const double* histograms,       // (N, rows, columns)
                     const double* ranges,           // (N, 4)
                     double* workspace,              // (backward_doubles)
                     S* grad_warped,                 // (N, C, *S)
                     void* stream);

}  // namespace diffreg::mutual_information
