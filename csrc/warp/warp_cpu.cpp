// Schema and CPU driver of diffreg::warp and diffreg::warp_backward.
#include "warp_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "moving_gradient.h"
#include "not_a_number.h"

namespace diffreg::warp {
namespace {

template <typename Rule, int D, typename T>
void forward_linear(const Grids<D>& grids,
                    const T* moving,        // (N, C, *from)
                    const T* displacement,  // (N, D, *to)
                    T* warped) {            // (N, C, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<D, T>& line) {
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        T* out = warped + c * grids.to_voxels + line.voxel;
        for_corners<Rule>(grids, line, moving + c * grids.from_voxels,
                          [&](int64_t x, const Neighbours<T>* at, const auto& corners)
                              DIFFREG_INLINE_LAMBDA { out[x] = corners.value(at); });
      }
    });
  });
}

// Voxels are copied as bytes, so that every dtype works.
template <typename Rule, int D, typename T>
void forward_nearest(const Grids<D>& grids, int64_t bytes,
                     const char* nan,        // (bytes)
                     const char* moving,     // (N, C, *from, bytes)
                     const T* displacement,  // (N, D, *to)
                     char* warped) {         // (N, C, *to, bytes)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    const char* image = moving + n * grids.channels * grids.from_voxels * bytes;
    char* out = warped + n * grids.channels * grids.to_voxels * bytes;
    for_row<Rule>(grids, displacement + n * D * grids.to_voxels, row,
                  [&](int64_t voxel, const Neighbours<T>* at) {
                    int64_t from = 0;
                    T weight = 1;
                    for (int k = 0; k < D; ++k) {
                      from += at[k].low * grids.stride[k];
                      weight *= at[k].low_weight;
                    }
                    for (int64_t c = 0; c < grids.channels; ++c) {
                      char* to = out + (c * grids.to_voxels + voxel) * bytes;
                      const char* value = image + (c * grids.from_voxels + from) * bytes;
                      if (weight == 0) {
                        std::memset(to, 0, bytes);
                      } else {
                        std::memcpy(to, weight > 0 ? value : nan, bytes);
                      }
                    }
                  });
  });
}

template <int D, typename T>
void forward_cubic(const Grids<D>& grids, Padding padding,
                   const T* moving,        // (N, C, *from)
                   const T* displacement,  // (N, D, *to)
                   T* warped) {            // (N, C, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_cubic_row(grids, displacement + n * D * grids.to_voxels, padding, row,
                  [&](int64_t voxel, const CubicTaps<T>* at) {
                    for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
                      T value[1];
                      contract<D>(moving + c * grids.from_voxels, grids.stride, at, value);
                      warped[c * grids.to_voxels + voxel] = value[0];
                    }
                  });
  });
}

// Adds the upstream gradient times the derivative along each axis, channel after channel; where it
// does not `accumulate`, to zeros, which are written line by line: they do not leave the cache.
template <typename Rule, int D, typename T>
void add_to_displacement(const Grids<D>& grids, bool accumulate,
                         const T* gradient,       // (N, C, *to)
                         const T* moving,         // (N, C, *from)
                         const T* displacement,   // (N, D, *to)
                         T* grad_displacement) {  // (N, D, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<D, T>& line) {
      T* out = grad_displacement + n * D * grids.to_voxels + line.voxel;
      for (int k = 0; k < D && !accumulate; ++k) {
        std::fill_n(out + k * grids.to_voxels, grids.to[D - 1], T(0));
      }
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        const T* upstream = gradient + c * grids.to_voxels + line.voxel;
        for_corners<Rule>(grids, line, moving + c * grids.from_voxels,
                          [&](int64_t x, const Neighbours<T>* at,
                              const Corners<D, T>& corners) DIFFREG_INLINE_LAMBDA {
                            out[x] += passed_on(upstream[x], corners.template derivative<0>(at));
                            out[grids.to_voxels + x] +=
                                passed_on(upstream[x], corners.template derivative<1>(at));
                            if constexpr (D == 3) {
                              out[2 * grids.to_voxels + x] +=
                                  passed_on(upstream[x], corners.template derivative<2>(at));
                            }
                          });
      }
    });
  });
}

template <int D, typename T>
void add_to_displacement_cubic(const Grids<D>& grids, Padding padding, bool accumulate,
                               const T* gradient,       // (N, C, *to)
                               const T* moving,         // (N, C, *from)
                               const T* displacement,   // (N, D, *to)
                               T* grad_displacement) {  // (N, D, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    T* out = grad_displacement + n * D * grids.to_voxels;
    for (int k = 0; k < D && !accumulate; ++k) {
      std::fill_n(out + k * grids.to_voxels + row * grids.row_voxels, grids.row_voxels, T(0));
    }
    for_cubic_row(grids, displacement + n * D * grids.to_voxels, padding, row,
                  [&](int64_t voxel, const CubicTaps<T>* at) {
                    for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
                      const T upstream = gradient[c * grids.to_voxels + voxel];
                      T found[1 + D];
                      contract<D>(moving + c * grids.from_voxels, grids.stride, at, found);
                      for (int k = 0; k < D; ++k) {
                        out[k * grids.to_voxels + voxel] += passed_on(upstream, found[1 + k]);
                      }
                    }
                  });
  });
}

}  // namespace

Tensor warped_image(const Tensor& moving, const Tensor& displacement, const Sampling& sampling) {
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  Tensor warped = torch::stable::new_empty(moving, shape);
  if (warped.numel() == 0) return warped;
  dispatch_dimensions(displacement, [&](auto dimensions) {
    const Grids<decltype(dimensions)::value> grids(moving, displacement);
    dispatch_floating("displacement", displacement, [&](auto zero) {
      using T = decltype(zero);
      const T* u = displacement.const_data_ptr<T>();
      if (sampling.interpolation == Interpolation::cubic) {
        return forward_cubic(grids, sampling.padding, moving.const_data_ptr<T>(), u,
                             warped.mutable_data_ptr<T>());
      }
      with_rule(sampling, [&](auto rule) {
        using Rule = decltype(rule);
        if constexpr (Rule::kLinear) {
          forward_linear<Rule>(grids, moving.const_data_ptr<T>(), u, warped.mutable_data_ptr<T>());
        } else {
          forward_nearest<Rule>(grids, static_cast<int64_t>(moving.element_size()),
                                not_a_number(moving).data(),
                                static_cast<const char*>(moving.const_data_ptr()), u,
                                static_cast<char*>(warped.mutable_data_ptr()));
        }
      });
    });
  });
  return warped;
}

void add_gradients(const Tensor& gradient, const Tensor& moving, const Tensor& displacement,
                   const Sampling& sampling, Tensor* to_moving, Tensor* to_displacement,
                   bool accumulate) {
  if (gradient.numel() == 0) return;
  dispatch_dimensions(displacement, [&](auto dimensions) {
    const Grids<decltype(dimensions)::value> grids(moving, displacement);
    dispatch_floating("moving", moving, [&](auto zero) {
      using T = decltype(zero);
      const T* g = gradient.const_data_ptr<T>();
      const T *u = displacement.const_data_ptr<T>(), *image = moving.const_data_ptr<T>();
      T* to_image = to_moving ? to_moving->mutable_data_ptr<T>() : nullptr;
      T* to_field = to_displacement ? to_displacement->mutable_data_ptr<T>() : nullptr;
      if (sampling.interpolation == Interpolation::cubic) {
        if (to_image) add_to_moving_cubic(grids, sampling.padding, g, u, to_image);
        if (to_field)
          add_to_displacement_cubic(grids, sampling.padding, accumulate, g, image, u, to_field);
        return;
      }
      with_rule(sampling, [&](auto rule) {
        using Rule = decltype(rule);
        if (to_image) add_to_moving_linear<Rule>(grids, g, u, to_image);
        if (!to_field) return;
        // Of the nearest voxel it is 0, or NaN, under any padding.
        using Derived = std::conditional_t<Rule::kLinear, Rule, warp::Rule<false, Padding::border>>;
        add_to_displacement<Derived>(grids, accumulate, g, image, u, to_field);
      });
    });
  });
}

namespace {

Tensor forward(const Tensor& moving, const Tensor& displacement, std::string interpolation,
               std::string padding) {
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(moving, displacement);
  if (sampling.interpolation != Interpolation::nearest) {
    check_dtype("displacement", displacement, moving.scalar_type());
  }
  return warped_image(torch::stable::contiguous(moving), torch::stable::contiguous(displacement),
                      sampling);
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& displacement, std::string interpolation,
                                    std::string padding, bool need_moving, bool need_displacement,
                                    bool /* deterministic, as always on the CPU */) {
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(moving, displacement);
  check_dtype("displacement", displacement, moving.scalar_type());
  check_dtype("gradient", gradient, moving.scalar_type());
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  check_shape("gradient", gradient, shape);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  // A gradient that nobody asked for is an empty tensor.
  const auto output = [](const Tensor& like, bool need, bool overwritten) {
    if (!need) return torch::stable::new_empty(like, {0});
    return overwritten ? torch::stable::new_empty(like, like.sizes())
                       : torch::stable::new_zeros(like, like.sizes());
  };
  Tensor grad_moving = output(image, need_moving, false);
  Tensor grad_displacement = output(field, need_displacement, upstream.numel() > 0);
  add_gradients(upstream, image, field, sampling, need_moving ? &grad_moving : nullptr,
                need_displacement ? &grad_displacement : nullptr, false);
  return {grad_moving, grad_displacement};
}

}  // namespace
}  // namespace diffreg::warp

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def("warp(Tensor moving, Tensor displacement, str interpolation, str padding) -> Tensor");
  library.def(
      "warp_backward(Tensor gradient, Tensor moving, Tensor displacement, str interpolation, "
      "str padding, bool need_moving, bool need_displacement, bool deterministic=False) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("warp", TORCH_BOX(&diffreg::warp::forward));
  library.impl("warp_backward", TORCH_BOX(&diffreg::warp::backward));
}
