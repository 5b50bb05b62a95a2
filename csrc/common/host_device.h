// Marks the formulas that the CPU and the CUDA drivers share, and what else a loop over voxels must
// not call but contain (inlined), or it is not vectorised.
#pragma once

#include <cmath>

#define DIFFREG_INLINE __attribute__((always_inline)) inline

#ifdef __CUDACC__
#define DIFFREG_HD __host__ __device__ inline
#else
#define DIFFREG_HD DIFFREG_INLINE
#endif

namespace diffreg {

// a / b. A GPU divides floats to two units in the last place, in half the instructions; by more
// than 2^126, to 0.
template <typename T>
DIFFREG_HD T quotient(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) return __fdividef(a, b);
#endif
  return a / b;
}

// The same where b is known to be neither tiny nor huge, 2^-126 <= |b| <= 2^126: in a fifth.
template <typename T>
DIFFREG_HD T plain_quotient(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) {
    T inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
  }
#endif
  return a / b;
}

// Whether a value is not finite where the weight is 0: it is not read, and has no gradient.
template <typename T, typename Weight>
DIFFREG_HD bool hidden(T value, Weight weight) {
  return (weight == 0) & (value - value != 0);
}

// What a measure reads of a value under a weight: 0 for a hidden one. All others keep their bits,
// and a weight that is known to be 1 costs nothing.
template <typename T, typename Weight>
DIFFREG_HD T visible(T value, Weight weight) {
  return hidden(value, weight) ? T(0) : value;
}

// What a sum takes of a value: nothing where the weight is 0. It is to be multiplied by the weight.
template <typename T, typename Weight>
DIFFREG_HD T counted(T value, Weight weight) {
  return weight == 0 ? T(0) : value;
}

// On a GPU to two units in the last place, too.
template <typename T>
DIFFREG_HD T square_root(T a) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) {
    T root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(a));
    return root;
  }
#endif
  return std::sqrt(a);
}

}  // namespace diffreg
