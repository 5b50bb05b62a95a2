// The launchers of deformation_energy.cu. All tensors are contiguous.
#pragma once

#include "../common/dimensions.h"
#include "../common/storage.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

struct Problem {
  int64_t samples, height, width;
  Coefficients<D> factor;
  PenaltyKind penalty;
  double threshold;

  int64_t planes() const { return samples; }
};

// The gradient to each energy, read on the device; null where that energy was not used.
template <typename T>
struct Upstream {
  const T* diffusion;    // (N)
  const T* bending;      // (N)
  const T* determinant;  // (N)
};

int64_t forward_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem,
                    const S* displacement,       // (N, 2, H, W)
                    double* workspace,           // (forward_doubles)
                    Arithmetic<S>* diffusion,    // (N)
                    Arithmetic<S>* bending,      // (N)
                    Arithmetic<S>* determinant,  // (N)
                    void* stream);

template <typename S>
void launch_backward(const Problem& problem, const Upstream<Arithmetic<S>>& upstream,
                     const S* displacement,  // (N, 2, H, W)
                     S* gradient,            // (N, 2, H, W)
                     void* stream);

}  // namespace diffreg::deformation_energy
