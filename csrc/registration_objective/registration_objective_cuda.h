// The launchers of registration_objective.cu: what an objective is made of beside the operators.
// All tensors are contiguous; a pointer that is null stands for what nobody asked for.
#pragma once

#include <cstdint>

#include "registration_objective.h"

namespace diffreg::registration_objective {

struct Problem {
  int64_t samples, channels, voxels;  // of the fixed grid
  double mixture[kMeasures];
  Weights weights;
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

// The gradient to each part: the measures, in their order, then the three energies.
constexpr int kParts = kMeasures + 3;

// That follows from the gradient to the terms; null: from 1 to the total alone.
template <typename T>
void launch_upstream(const Problem& problem, const Upstream<T>* upstream,
                     T* parts,  // (kParts, N)
                     void* stream);

// The similarity and the total. A measure that is no part of the mixture is not read; null are
// those of images without voxels: correlation's alone is not 0.
template <typename T>
void launch_terms(const Problem& problem,
                  const T* measures,     // (kMeasures, N) or null
                  const T* diffusion,    // (N)
                  const T* bending,      // (N)
                  const T* determinant,  // (N)
                  T* similarity,         // (N)
                  T* total,              // (N)
                  void* stream);

int64_t squares_doubles(const Problem& problem);

// Mean squared difference, and its gradient to the warped image.
template <typename T>
void launch_squares(const Problem& problem,
                    const T* warped,    // (N, C, *S)
                    const T* fixed,     // (N, C, *S)
                    const T* mask,      // (N, 1, *S) or null
                    double* workspace,  // (squares_doubles)
                    T* value,           // (N) or null
                    const T* upstream,  // (N)
                    T* gradient,        // (N, C, *S) or null
                    bool accumulate,    // to the gradient that is there
                    void* stream);

// The gradient to the warped image is 0 in the samples of which no measure is weighed, whatever the
// measures made of it.
template <typename T>
void launch_clear(const Problem& problem,
                  const T* upstream,  // (kMeasures, N)
                  T* gradient,        // (N, C, *S)
                  void* stream);

// Multiplies the values of each sample by its factor, in place; where that is 1, nothing is read,
// and 0 leaves nothing, not even NaN.
template <typename T>
void launch_scale(int64_t samples, int64_t values, const T* factor,
                  int64_t stride,  // (N), so far apart
                  T* tensor,       // (N, values)
                  void* stream);

}  // namespace diffreg::registration_objective
