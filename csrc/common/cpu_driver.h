// What the CPU drivers share: the choice of axes and type, and scalars a sample.
#pragma once

#include <algorithm>
#include <vector>

#include "check.h"

namespace diffreg {

// Calls run<D, T>() with the number of a tensor's spatial axes and its type, float or double.
template <typename Run>
void dispatch_case(const char* name, const Tensor& tensor, const Run& run) {
  dispatch_dimensions(tensor, [&](auto dimensions) {
    dispatch_floating(name, tensor, [&](auto zero) {
      run.template operator()<decltype(dimensions)::value, decltype(zero)>();
    });
  });
}

// A scalar a sample, (N), which must be of the image's type.
inline std::vector<double> scalars_of(const char* name, const Tensor& scalars,
                                      const Tensor& image) {
  check_shape(name, scalars, {image.size(0)});
  check_dtype(name, scalars, image.scalar_type());
  const Tensor values = torch::stable::contiguous(scalars);
  std::vector<double> found(image.size(0));
  dispatch_floating(name, values, [&](auto zero) {
    std::copy_n(values.const_data_ptr<decltype(zero)>(), found.size(), found.begin());
  });
  return found;
}

// The same as a tensor, of the image's type.
inline Tensor new_scalars(const char* name, const Tensor& image,
                          const std::vector<double>& values) {
  Tensor scalars = torch::stable::new_empty(image, {static_cast<int64_t>(values.size())});
  dispatch_floating(name, scalars, [&](auto zero) {
    std::copy(values.begin(), values.end(), scalars.mutable_data_ptr<decltype(zero)>());
  });
  return scalars;
}

inline Tensor zero_gradient_like(const Tensor& image, bool need) {
  Tensor gradient = gradient_like(image, need);
  return torch::stable::zero_(gradient);
}

}  // namespace diffreg
