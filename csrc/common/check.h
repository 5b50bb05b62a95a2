// Guards of the memory behind every operator, for callers that go past the Python functions.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "options.h"
#include "text.h"

namespace diffreg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t k = 0; k < tensor.dim(); ++k) {
    text += (k ? ", " : "") + std::to_string(tensor.size(k));
  }
  return text + "]";
}

// The value of an option by its name; an unknown one raises, and is told all there are.
template <typename Value, size_t count>
Value parse(const char* option, const std::string& name, const Named<Value> (&values)[count]) {
  std::string known;
  for (size_t k = 0; k < count; ++k) {
    if (name == values[k].name) return values[k].value;
    known += k == 0 ? "'" : (k + 1 < count ? ", '" : " or '");
    known += std::string(values[k].name) + "'";
  }
  STD_TORCH_CHECK(false, option, " must be ", known, ", got '", name, "'");
  return values[0].value;  // never comes here
}

// The length of an option that is a list.
inline void check_length(const char* option, const std::vector<double>& values, size_t length,
                         const char* of) {
  STD_TORCH_CHECK(values.size() == length, option, " must have ", length, " ", of, ", got ",
                  values.size());
}

inline int64_t dimensions_of(const Tensor& tensor) { return tensor.dim() - 2; }

inline void check_spacing(const std::vector<double>& spacing, int64_t dimensions) {
  check_length("spacing", spacing, static_cast<size_t>(dimensions), "values");
}

// Of a local correlation.
inline void check_window(int64_t window) {
  STD_TORCH_CHECK(window > 0 && window % 2 == 1, "window must be odd and positive, got ", window);
}

// Drivers and kernels count along an axis in 32 bits, some beyond the border.
inline void check_axes(const Tensor& tensor) {
  for (int64_t k = 2; k < tensor.dim(); ++k) {
    STD_TORCH_CHECK(tensor.size(k) < 1 << 30, "an axis must be shorter than 2^30 voxels");
  }
}

inline void check_image_shape(const char* name, const Tensor& image) {
  STD_TORCH_CHECK(image.dim() == 4 || image.dim() == 5, name,
                  " must be (N, C, H, W) or (N, C, Z, H, W), got ", shape_of(image));
}

inline void check_displacement_shape(const Tensor& displacement) {
  STD_TORCH_CHECK((displacement.dim() == 4 || displacement.dim() == 5) &&
                      displacement.size(1) == dimensions_of(displacement),
                  "displacement must be (N, 2, H, W) or (N, 3, Z, H, W), got ",
                  shape_of(displacement));
}

inline void check_image(const char* name, const Tensor& image) {
  check_image_shape(name, image);
  STD_TORCH_CHECK(image.is_cpu(), name, " must be on the CPU");
}

inline void check_displacement(const Tensor& displacement) {
  check_displacement_shape(displacement);
  STD_TORCH_CHECK(displacement.is_cpu(), "displacement must be on the CPU");
}

inline void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t k = 0; same && k < tensor.dim(); ++k) same = tensor.size(k) == shape[k];
  STD_TORCH_CHECK(same, name, " has the wrong shape: ", shape_of(tensor));
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have the dtype of the other inputs");
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

// The shape (N, 1, *S) of an image's mask.
inline std::vector<int64_t> mask_shape(const Tensor& image) {
  auto shape = sizes_of(image);
  shape[1] = 1;
  return shape;
}

// A tensor like `image`, or an empty one for a gradient that nobody asked for.
inline Tensor gradient_like(const Tensor& image, bool need) {
  return torch::stable::new_empty(image, need ? sizes_of(image) : std::vector<int64_t>{0});
}

// Rows of an image along its last axis, in all its leading ones; and voxels of a row.
inline int64_t rows_of(const Tensor& image) {
  int64_t rows = 1;
  for (int64_t k = 2; k + 1 < image.dim(); ++k) rows *= image.size(k);
  return rows;
}
inline int64_t width_of(const Tensor& image) { return image.size(image.dim() - 1); }

// Calls run(Constant<D>()) with the number of a tensor's spatial axes, which has been checked.
template <typename Run>
void dispatch_dimensions(const Tensor& tensor, const Run& run) {
  dispatch_value<2, 3>(static_cast<int>(dimensions_of(tensor)), run);
}

// Calls run(T{}) with T = float or double.
template <typename Run>
void dispatch_floating(const char* name, const Tensor& tensor, const Run& run) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    default: STD_TORCH_CHECK(false, name, " must be float32 or float64");
  }
}

}  // namespace diffreg
