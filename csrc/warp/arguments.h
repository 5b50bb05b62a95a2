// What both drivers of warp check of the operator's arguments.
#pragma once

#include "../common/check.h"
#include "warp.h"

namespace diffreg::warp {

inline Sampling parse_sampling(const std::string& interpolation, const std::string& padding) {
  return {parse("interpolation", interpolation, kInterpolations),
          parse("padding", padding, kPaddings)};
}

inline std::vector<int64_t> warped_shape(const Tensor& moving, const Tensor& displacement) {
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  return shape;
}

// An image and the field that displaces it, of which each is right by itself.
inline void check_pair(const Tensor& moving, const Tensor& displacement) {
  STD_TORCH_CHECK(moving.dim() == displacement.dim(), "moving has ", dimensions_of(moving),
                  " axes, displacement ", dimensions_of(displacement));
  STD_TORCH_CHECK(moving.size(0) == displacement.size(0), "moving has ", moving.size(0),
                  " samples, displacement ", displacement.size(0));
  bool nothing_to_read = false;
  for (int64_t k = 2; k < moving.dim(); ++k) nothing_to_read |= moving.size(k) == 0;
  STD_TORCH_CHECK(!nothing_to_read || displacement.numel() == 0,
                  "moving has no voxels: ", shape_of(moving));
  if (displacement.scalar_type() == ScalarType::Double) return;
  for (int64_t k = 2; k < moving.dim(); ++k) {
    STD_TORCH_CHECK(
        moving.size(k) <= 1 << 24 && displacement.size(k) <= 1 << 24,
        "an axis of more than 2^24 voxels needs float64: float32 does not tell them apart");
  }
}

}  // namespace diffreg::warp
