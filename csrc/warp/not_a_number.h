// The bytes of a NaN, for voxels that are copied without regard to their dtype.
#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include "../common/check.h"

namespace diffreg::warp {

// The bytes of a NaN of a floating dtype, zeros for the others.
inline std::vector<char> not_a_number(const Tensor& tensor) {
  std::vector<char> bytes(tensor.element_size(), 0);
  const auto put = [&](auto nan) { std::memcpy(bytes.data(), &nan, sizeof nan); };
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::ComplexFloat: put(std::numeric_limits<float>::quiet_NaN()); break;
    case ScalarType::Double:
    case ScalarType::ComplexDouble: put(std::numeric_limits<double>::quiet_NaN()); break;
    case ScalarType::Half: put(uint16_t{0x7e00}); break;
    case ScalarType::BFloat16: put(uint16_t{0x7fc0}); break;
    default: break;
  }
  return bytes;
}

}  // namespace diffreg::warp
