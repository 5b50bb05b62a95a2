// The launchers of deformation_energy.cu. All tensors are contiguous.
#pragma once

#include <algorithm>

#include "../common/storage.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

template <int D>
struct Problem {
  int64_t samples, size[D];
  Coefficients<D> factor;
  PenaltyKind penalty;
  double threshold;

  Problem(int64_t samples, const int64_t* sizes, const double* spacing, PenaltyKind penalty,
          double threshold)
      : samples(samples), factor(sizes, spacing), penalty(penalty), threshold(threshold) {
    std::copy_n(sizes, D, size);
  }
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

template <int D>
int64_t forward_doubles(const Problem<D>& problem);

template <int D, typename S>
void launch_forward(const Problem<D>& problem,
                    const S* displacement,  // (N, D, *S)
                    double* workspace,      // (forward_doubles)
                    const Energies<Arithmetic<S>>& energies, void* stream);

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Upstream<Arithmetic<S>>& upstream,
                     const S* displacement,  // (N, D, *S)
                     S* gradient,            // (N, D, *S)
                     void* stream);

template <typename S, int D>
int64_t both_doubles(const Problem<D>& problem);

// Both in one pass. A determinant of upstream gradient 0 gives nothing, not even NaN.
template <int D, typename S>
void launch_both(const Problem<D>& problem, const Upstream<Arithmetic<S>>& upstream,
                 const S* displacement,  // (N, D, *S)
                 double* workspace,      // (both_doubles)
                 const Energies<Arithmetic<S>>& energies,
                 Arithmetic<S>* gradient,  // (N, D, *S)
                 void* stream);

}  // namespace diffreg::deformation_energy
