// The launchers of deformation_energy.cu. All tensors are contiguous.
#pragma once

#include "../common/storage.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

template <int D>
struct Problem {
  int64_t samples, size[D];
  Coefficients<D> factor;
  PenaltyKind penalty;
  double threshold;
};

// The gradient to each energy, read on the device; null where that energy was not used.
template <typename T>
struct Upstream {
  const T* diffusion;    // (N)
  const T* bending;      // (N)
  const T* determinant;  // (N)
};

template <typename T>
struct Energies {
  T* diffusion;    // (N)
  T* bending;      // (N)
  T* determinant;  // (N)
};

// Doubles of workspace for any of the launches.
template <int D>
int64_t workspace_doubles(const Problem<D>& problem);

template <int D, typename S>
void launch_forward(const Problem<D>& problem,
                    const S* displacement,  // (N, D, *S)
                    double* workspace,      // (workspace_doubles)
                    const Energies<Arithmetic<S>>& energies, void* stream);

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Upstream<Arithmetic<S>>& upstream,
                     const S* displacement,  // (N, D, *S)
                     S* gradient,            // (N, D, *S)
                     void* stream);

// Both in one pass. A determinant of upstream gradient 0 gives nothing, not even NaN.
template <int D, typename S>
void launch_both(const Problem<D>& problem, const Upstream<Arithmetic<S>>& upstream,
                 const S* displacement,  // (N, D, *S)
                 double* workspace,      // (workspace_doubles)
                 const Energies<Arithmetic<S>>& energies,
                 Arithmetic<S>* gradient,  // (N, D, *S)
                 void* stream);

}  // namespace diffreg::deformation_energy
