// The launchers of deformation_energy.cu, called by deformation_energy_cuda.cpp. All tensors are
// contiguous.
#pragma once

#include "../common/storage.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

struct Problem {
  int64_t samples, height, width;
  Coefficients factor;
  PenaltyKind penalty;
  double threshold;
};

// The gradient to each energy, read on the device; null where that energy was not used.
template <typename S>
struct Upstream {
  const S* diffusion;    // (N)
  const S* bending;      // (N)
  const S* determinant;  // (N)
};

int64_t forward_doubles(const Problem& problem, size_t voxel_bytes);

template <typename S>
void launch_forward(const Problem& problem,
                    const S* displacement,  // (N, 2, H, W)
                    double* workspace,      // (forward_doubles)
                    S* diffusion,           // (N)
                    S* bending,             // (N)
                    S* determinant,         // (N)
                    void* stream);

template <typename S>
void launch_backward(const Problem& problem, const Upstream<S>& upstream,
                     const S* displacement,  // (N, 2, H, W)
                     S* gradient,            // (N, 2, H, W)
                     void* stream);

}  // namespace diffreg::deformation_energy
