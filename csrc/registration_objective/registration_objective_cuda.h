// The launchers of registration_objective.cu. All tensors are contiguous; a pointer that is null
// stands for what nobody asked for.
#pragma once

#include "../common/dimensions.h"
#include "../common/storage.h"
#include "../deformation_energy/deformation_energy.h"
#include "../warp/warp.h"
#include "registration_objective.h"

namespace diffreg::registration_objective {

struct Problem {
  int64_t samples, channels;
  int32_t from[D], to[D];  // sizes of the moving and of the fixed grid
  warp::Padding padding;
  double mixture[kMeasures];  // without kLncc, which has no kernel here
  Weights weights;
  deformation_energy::Coefficients<D> factor;
  deformation_energy::PenaltyKind penalty;
  double threshold;
  double epsilon;  // of the arithmetic

  DIFFREG_HD int64_t voxels() const { return int64_t{to[0]} * to[1]; }
};

template <typename S>
struct Images {
  const S* moving;                  // (N, C, *from)
  const S* fixed;                   // (N, C, *to)
  const S* displacement;            // (N, D, *to)
  const Arithmetic<S>* eps_moving;  // (N), or null without level sets
  const Arithmetic<S>* eps_fixed;   // (N), or null without level sets
  const Arithmetic<S>* mask;        // (N, 1, *to) or null
};

// The gradient to each term, read on the device; null where there is none.
template <typename T>
struct Upstream {
  const T* total;        // (N)
  const T* similarity;   // (N)
  const T* diffusion;    // (N)
  const T* bending;      // (N)
  const T* determinant;  // (N)
};

template <typename T>
struct Terms {
  T* total;        // (N), or null where no term is asked for
  T* similarity;   // (N)
  T* diffusion;    // (N)
  T* bending;      // (N)
  T* determinant;  // (N)
};

// Doubles of workspace for any of the launches.
int64_t workspace_doubles(const Problem& problem);

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images,
                    const Terms<Arithmetic<S>>& terms,
                    Arithmetic<S>* warped,  // (N, C, *to) or null
                    double* workspace,      // (workspace_doubles)
                    void* stream);

// With terms: the gradient of the total, and all that launch_forward gives. Without: the gradient
// that follows from the upstream ones.
template <typename S>
void launch_gradient(const Problem& problem, const Images<S>& images,
                     const Upstream<Arithmetic<S>>& upstream, const Terms<Arithmetic<S>>& terms,
                     Arithmetic<S>* gradient,  // (N, D, *to)
                     Arithmetic<S>* warped,    // (N, C, *to) or null
                     double* workspace,        // (workspace_doubles)
                     void* stream);

}  // namespace diffreg::registration_objective
