// What both drivers of jacobian_determinant make of its arguments.
#pragma once

#include <algorithm>

#include "../common/check.h"
#include "jacobian_determinant.h"

namespace diffreg::jacobian_determinant {

// (N, values, *cells), or (N, *cells) of one value a cell.
inline std::vector<int64_t> output_shape(const Tensor& displacement, Reduce reduce) {
  std::vector<int64_t> shape{displacement.size(0)};
  if (reduce == Reduce::none) shape.push_back(int64_t{1} << dimensions_of(displacement));
  for (int64_t k = 2; k < displacement.dim(); ++k) {
    shape.push_back(std::max<int64_t>(displacement.size(k) - 1, 0));
  }
  return shape;
}

}  // namespace diffreg::jacobian_determinant
