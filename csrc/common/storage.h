// Types that voxels are stored in, and the type that is computed with: float for the two 16-bit
// ones. Conversions round to nearest even, as torch's do.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace diffreg {

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  DIFFREG_HD explicit BFloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    const uint32_t rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    bits = value == value ? static_cast<uint16_t>(rounded) : uint16_t{0x7fc0};
  }
  DIFFREG_HD explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
  }
};

struct Half {
  uint16_t bits;

  Half() = default;
#ifdef __CUDACC__
  DIFFREG_HD explicit Half(float value) : bits(__half_as_ushort(__float2half_rn(value))) {}
  DIFFREG_HD explicit operator float() const { return __half2float(__ushort_as_half(bits)); }
#else
  DIFFREG_HD explicit Half(float value) {
    const _Float16 rounded = static_cast<_Float16>(value);
    memcpy(&bits, &rounded, sizeof bits);
  }
  DIFFREG_HD explicit operator float() const {
    _Float16 value;
    memcpy(&value, &bits, sizeof bits);
    return static_cast<float>(value);
  }
#endif
};

template <typename S>
struct ArithmeticOf {
  using type = S;
};
template <>
struct ArithmeticOf<BFloat16> {
  using type = float;
};
template <>
struct ArithmeticOf<Half> {
  using type = float;
};
template <typename S>
using Arithmetic = typename ArithmeticOf<S>::type;

// A scalar of every sample, on the device; or one for all, which a kernel's arguments bring along.
template <typename T>
struct PerSample {
  const T* each;  // (N) or null
  T all;
};

}  // namespace diffreg
