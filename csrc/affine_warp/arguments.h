// What both drivers of affine_warp check of the operator's arguments.
#pragma once

#include <optional>

#include "../warp/arguments.h"

namespace diffreg::affine_warp {

// The size of the fixed grid: the displacement's, else the one that is asked for.
inline std::vector<int64_t> fixed_size(const std::optional<Tensor>& displacement,
                                       const std::vector<int64_t>& size) {
  if (!displacement) return size;
  check_displacement_shape(*displacement);
  STD_TORCH_CHECK(size.empty(), "size is the displacement's where there is one, got another");
  return {displacement->sizes().begin() + 2, displacement->sizes().end()};
}

// The shape (N, channels, *S) of something on the fixed grid.
inline std::vector<int64_t> on_grid(const Tensor& matrix, int64_t channels,
                                    const std::vector<int64_t>& size) {
  std::vector<int64_t> shape{matrix.size(0), channels};
  shape.insert(shape.end(), size.begin(), size.end());
  return shape;
}

// A map, and how it fits the image and the grid that it leads from and to. Devices and the
// displacement's shape and dtype have been checked.
inline void check_map(const Tensor& moving, const Tensor& matrix,
                      const std::optional<Tensor>& displacement, const std::vector<int64_t>& size,
                      ScalarType arithmetic) {
  const int64_t D = dimensions_of(moving);
  STD_TORCH_CHECK(matrix.dim() == 3 && matrix.size(1) == D && matrix.size(2) == D + 1,
                  "matrix must be (N, D, D + 1), D = ", D, ", got ", shape_of(matrix));
  STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Double, "matrix must be float64");
  STD_TORCH_CHECK(static_cast<int64_t>(size.size()) == D, "size must have ", D, " numbers, got ",
                  size.size());
  STD_TORCH_CHECK(moving.size(0) == matrix.size(0) || moving.size(0) == 1, "moving has ",
                  moving.size(0), " samples, matrix ", matrix.size(0));
  STD_TORCH_CHECK(!displacement || displacement->size(0) == matrix.size(0),
                  "displacement must have the batch size of matrix, ", matrix.size(0), ", got ",
                  shape_of(*displacement));
  bool nothing_to_read = false, nothing_to_write = matrix.size(0) == 0;
  for (int64_t k = 0; k < D; ++k) {
    STD_TORCH_CHECK(size[k] >= 0 && size[k] < 1 << 30, "an axis must have 0 to 2^30 voxels");
    STD_TORCH_CHECK(
        arithmetic == ScalarType::Double || (moving.size(2 + k) <= 1 << 24 && size[k] <= 1 << 24),
        "an axis of more than 2^24 voxels needs float64: float32 does not tell them "
        "apart");
    nothing_to_read |= moving.size(2 + k) == 0;
    nothing_to_write |= size[k] == 0;
  }
  STD_TORCH_CHECK(!nothing_to_read || nothing_to_write, "moving has no voxels: ", shape_of(moving));
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& displacement) {
  if (!displacement) return std::nullopt;
  return torch::stable::contiguous(*displacement);
}

// Points are computed in double where the image or the displacement is, else in float.
inline bool in_double(const Tensor& moving, const std::optional<Tensor>& displacement) {
  return (displacement ? *displacement : moving).scalar_type() == ScalarType::Double;
}

}  // namespace diffreg::affine_warp
