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
