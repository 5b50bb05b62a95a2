// Marks the formulas that the CPU and the CUDA drivers share, and what else a loop over voxels must
// not call but contain (inlined), or it is not vectorised.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define DIFFREG_INLINE __attribute__((always_inline)) inline
#define DIFFREG_INLINE_LAMBDA __attribute__((always_inline))

#ifdef __CUDACC__
#define DIFFREG_HD __host__ __device__ inline
#else
#define DIFFREG_HD DIFFREG_INLINE
#endif

// Before a loop of a few turns in a formula: GCC leaves nests of them rolled, and then the loop
// over voxels around it is not vectorised.
#if defined(__CUDA_ARCH__)
#define DIFFREG_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)  // its host code runs none of these
#define DIFFREG_UNROLL
#else
#define DIFFREG_UNROLL _Pragma("GCC unroll 32")
#endif

namespace diffreg {

template <typename T>
constexpr T kSmallestNormal = std::numeric_limits<T>::min();

// a / b. A GPU divides floats to two units in the last place, in half the instructions; by more
// than 2^126, to 0.
template <typename T>
DIFFREG_HD T quotient(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) return __fdividef(a, b);
#endif
  return a / b;
}

// The same where b is known to be neither tiny nor huge, 2^-126 <= |b| <= 2^126: in a fifth, and a
// double without a call, by two steps of Newton's from 20 bits and one of the remainder.
template <typename T>
DIFFREG_HD T plain_quotient(T a, T b) {
#ifdef __CUDA_ARCH__
  T inverse;
  if constexpr (sizeof(T) == 4) {
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
  } else {
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(inverse) : "d"(b));
    inverse = fma(inverse, fma(-b, inverse, T(1)), inverse);
    inverse = fma(inverse, fma(-b, inverse, T(1)), inverse);
    const T near = a * inverse;
    return fma(fma(-b, near, a), inverse, near);
  }
#else
  return a / b;
#endif
}

// a b, rounded: no compiler makes one operation of it and of a sum behind it.
template <typename T>
DIFFREG_HD T rounded_product(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  return a * b;  // compiled without contraction
#endif
}

// The smaller of two numbers, or b where a is NaN: an instruction of its own on a GPU.
template <typename T>
DIFFREG_HD T smaller(T a, T b) {
#ifdef __CUDA_ARCH__
  return fmin(a, b);
#else
  return a < b ? a : b;
#endif
}

// `value`, or `otherwise` where the weight is 0, chosen by bits: as a choice it would become a
// branch around the load of the value, and a loop over voxels would not be vectorised.
template <typename T, typename Weight>
DIFFREG_HD T unless_zero(Weight weight, T value, T otherwise) {
#ifdef __CUDA_ARCH__
  return weight == 0 ? otherwise : value;  // where a choice is no branch
#else
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  Bits of_value, of_otherwise;
  memcpy(&of_value, &value, sizeof value);
  memcpy(&of_otherwise, &otherwise, sizeof otherwise);
  const Bits all = static_cast<Bits>(0) - static_cast<Bits>(weight != 0);
  const Bits bits = (of_value & all) | (of_otherwise & ~all);
  T chosen;
  memcpy(&chosen, &bits, sizeof chosen);
  return chosen;
#endif
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
  return unless_zero(!hidden(value, weight), value, T(0));
}

// What a sum takes of a value: nothing where the weight is 0. It is to be multiplied by the weight.
template <typename T, typename Weight>
DIFFREG_HD T counted(T value, Weight weight) {
  return unless_zero(weight, value, T(0));
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

// 1 / sqrt(a), for an `a` that is not below the smallest normal number.
template <typename T>
DIFFREG_HD T inverse_root(T a) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) {
    T root;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(a));
    return root;
  }
#endif
  return 1 / std::sqrt(a);
}

}  // namespace diffreg
