// Schema and CPU driver of diffreg::warp and diffreg::warp_backward.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "../common/check.h"
#include "../common/parallel.h"
#include "not_a_number.h"
#include "warp.h"

namespace diffreg::warp {
namespace {

constexpr int D = 2;

Sampling parse(const std::string& interpolation, const std::string& padding) {
  STD_TORCH_CHECK(interpolation == "linear" || interpolation == "nearest",
                  "interpolation must be 'linear' or 'nearest', got '", interpolation, "'");
  STD_TORCH_CHECK(padding == "border" || padding == "zeros",
                  "padding must be 'border' or 'zeros', got '", padding, "'");
  return {interpolation == "linear", padding == "border" ? Padding::border : Padding::zeros};
}

// Sizes and strides of contiguous tensors; `from` is the moving grid, `to` the fixed grid.
struct Grids {
  int64_t samples, channels;
  int64_t from[D], to[D];
  int64_t stride[D];  // of the moving grid
  int64_t from_voxels, to_voxels, row_voxels;

  Grids(const Tensor& moving, const Tensor& displacement)
      : samples(moving.size(0)), channels(moving.size(1)), from_voxels(1), to_voxels(1) {
    for (int k = D - 1; k >= 0; --k) {
      from[k] = moving.size(2 + k);
      to[k] = displacement.size(2 + k);
      stride[k] = from_voxels;
      from_voxels *= from[k];
      if (k == 0) row_voxels = to_voxels;
      to_voxels *= to[k];
    }
  }
};

void check(const Tensor& moving, const Tensor& displacement) {
  check_image("moving", moving);
  check_displacement(displacement);
  STD_TORCH_CHECK(moving.size(0) == displacement.size(0), "moving has ", moving.size(0),
                  " samples, displacement ", displacement.size(0));
  for (int k = 0; k < D; ++k) {
    STD_TORCH_CHECK(moving.size(2 + k) < 1 << 30 && displacement.size(2 + k) < 1 << 30,
                    "an axis must be shorter than 2^30 voxels");
  }
  const bool nothing_to_read = moving.size(2) == 0 || moving.size(3) == 0;
  STD_TORCH_CHECK(!nothing_to_read || displacement.numel() == 0,
                  "moving has no voxels: ", shape_of(moving));
}

// Neighbours along one axis, as arrays that vector code can fill.
template <typename T>
struct Lanes {
  static constexpr int64_t kCount = 128;
  int32_t low[kCount], high[kCount];
  T low_weight[kCount], high_weight[kCount], low_slope[kCount], high_slope[kCount];

  void set(int64_t i, const Neighbours<T>& at) {
    low[i] = at.low;
    high[i] = at.high;
    low_weight[i] = at.low_weight;
    high_weight[i] = at.high_weight;
    low_slope[i] = at.low_slope;
    high_slope[i] = at.high_slope;
  }
  Neighbours<T> get(int64_t i) const {
    return {low[i], high[i], low_weight[i], high_weight[i], low_slope[i], high_slope[i]};
  }

  // coordinate = start + i * step + component[i]
  void locate(const Sampling& sampling, int64_t start, int64_t step, int64_t count, int32_t size,
              const T* component,  // of the displacement, along this axis
              const T* bad) {
    const auto fill = [&](const auto& neighbours) {
      const int32_t first = static_cast<int32_t>(start), stride = static_cast<int32_t>(step);
      for (int32_t i = 0; i < static_cast<int32_t>(count); ++i) {
        set(i, neighbours(static_cast<T>(first + i * stride) + component[i], bad[i]));
      }
    };
    if (!sampling.linear) {
      fill([&](T at, T nan) { return nearest(at, nan, size, sampling.padding); });
    } else if (sampling.padding == Padding::border) {
      fill([&](T at, T nan) { return linear(at, nan, size, Padding::border); });
    } else {
      fill([&](T at, T nan) { return linear(at, nan, size, Padding::zeros); });
    }
  }
};

// Calls run(voxel, at) for the voxels of one row (axis 0) of the fixed grid, in raster order, with
// the neighbours on the moving grid of the point where each lands.
template <typename T, typename Run>
void for_row(const Grids& grids, const Sampling& sampling,
             const T* displacement,  // (D, *to) of one sample
             int64_t row, const Run& run) {
  const int64_t width = grids.to[D - 1];
  Lanes<T> lanes[D];
  int64_t index[D] = {row};
  for (int64_t line = row * grids.row_voxels; line < (row + 1) * grids.row_voxels; line += width) {
    for (int64_t x = 0; x < width; x += Lanes<T>::kCount) {
      const int64_t count = std::min(Lanes<T>::kCount, width - x);
      const T* components = displacement + line + x;
      T bad[Lanes<T>::kCount] = {};
      for (int k = 0; k < D; ++k) {
        for (int64_t i = 0; i < count; ++i) bad[i] += poison(components[k * grids.to_voxels + i]);
      }
      for (int k = 0; k < D; ++k) {
        const bool along = k == D - 1;
        lanes[k].locate(sampling, along ? x : index[k], along, count,
                        static_cast<int32_t>(grids.from[k]), components + k * grids.to_voxels, bad);
      }
      for (int64_t i = 0; i < count; ++i) {
        Neighbours<T> at[D];
        for (int k = 0; k < D; ++k) at[k] = lanes[k].get(i);
        run(line + x + i, at);
      }
    }
    for (int k = D - 2; k > 0 && ++index[k] == grids.to[k]; --k) index[k] = 0;
  }
}

template <typename T>
void forward_linear(const Grids& grids, const Sampling& sampling,
                    const T* moving,        // (N, C, *from)
                    const T* displacement,  // (N, D, *to)
                    T* warped) {            // (N, C, *to)
  for_each_strip(grids.samples, grids.to[0], grids.row_voxels,
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   const T* image = moving + n * grids.channels * grids.from_voxels;
                   T* out = warped + n * grids.channels * grids.to_voxels;
                   for (int64_t row = first; row < end; ++row) {
                     for_row(grids, sampling, displacement + n * D * grids.to_voxels, row,
                             [&](int64_t voxel, const Neighbours<T>* at) {
                               for (int64_t c = 0; c < grids.channels; ++c) {
                                 out[c * grids.to_voxels + voxel] =
                                     value<D>(image + c * grids.from_voxels, grids.stride, at);
                               }
                             });
                   }
                 });
}

// Voxels are copied as bytes, so that every dtype works.
template <typename T>
void forward_nearest(const Grids& grids, const Sampling& sampling, int64_t bytes,
                     const char* nan,        // (bytes)
                     const char* moving,     // (N, C, *from, bytes)
                     const T* displacement,  // (N, D, *to)
                     char* warped) {         // (N, C, *to, bytes)
  for_each_strip(grids.samples, grids.to[0], grids.row_voxels,
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   const char* image = moving + n * grids.channels * grids.from_voxels * bytes;
                   char* out = warped + n * grids.channels * grids.to_voxels * bytes;
                   for (int64_t row = first; row < end; ++row) {
                     for_row(grids, sampling, displacement + n * D * grids.to_voxels, row,
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
                   }
                 });
}

template <typename T>
void backward_displacement(const Grids& grids, const Sampling& sampling,
                           const T* gradient,       // (N, C, *to)
                           const T* moving,         // (N, C, *from)
                           const T* displacement,   // (N, D, *to)
                           T* grad_displacement) {  // (N, D, *to)
  for_each_strip(grids.samples, grids.to[0], grids.row_voxels,
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   const T* image = moving + n * grids.channels * grids.from_voxels;
                   const T* upstream = gradient + n * grids.channels * grids.to_voxels;
                   T* out = grad_displacement + n * D * grids.to_voxels;
                   for (int64_t row = first; row < end; ++row) {
                     for_row(grids, sampling, displacement + n * D * grids.to_voxels, row,
                             [&](int64_t voxel, const Neighbours<T>* at) {
                               T sum[D] = {};
                               for (int64_t c = 0; c < grids.channels; ++c) {
                                 const T weight = upstream[c * grids.to_voxels + voxel];
                                 const T* plane = image + c * grids.from_voxels;
                                 sum[0] += weight * derivative<D, 0>(plane, grids.stride, at);
                                 sum[1] += weight * derivative<D, 1>(plane, grids.stride, at);
                               }
                               for (int k = 0; k < D; ++k)
                                 out[k * grids.to_voxels + voxel] = sum[k];
                             });
                   }
                 });
}

// The rows of the moving grid that one row of the fixed grid touches.
struct RowRange {
  int32_t lowest, highest;
};

template <typename T>
std::vector<RowRange> touched_rows(const Grids& grids, const Sampling& sampling,
                                   const T* displacement) {  // (N, D, *to)
  std::vector<RowRange> ranges(grids.samples * grids.to[0],
                               {static_cast<int32_t>(grids.from[0]), -1});
  for_each_strip(grids.samples, grids.to[0], grids.row_voxels,
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   for (int64_t row = first; row < end; ++row) {
                     RowRange& range = ranges[n * grids.to[0] + row];
                     for_row(grids, sampling, displacement + n * D * grids.to_voxels, row,
                             [&](int64_t, const Neighbours<T>* at) {
                               range.lowest = std::min(range.lowest, at[0].low);
                               range.highest = std::max(range.highest, at[0].high);
                             });
                   }
                 });
  return ranges;
}

// Every strip of the moving grid collects its own contributions in the raster order of the fixed
// grid: no atomics, and the same bits whatever the number of threads.
template <typename T>
void backward_moving(const Grids& grids, const Sampling& sampling,
                     const T* gradient,      // (N, C, *to)
                     const T* displacement,  // (N, D, *to)
                     T* grad_moving) {       // (N, C, *from), zeros
  const auto ranges = touched_rows(grids, sampling, displacement);
  for_each_strip(grids.samples, grids.from[0], grids.stride[0],
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   const T* upstream = gradient + n * grids.channels * grids.to_voxels;
                   T* out = grad_moving + n * grids.channels * grids.from_voxels;
                   for (int64_t row = 0; row < grids.to[0]; ++row) {
                     const RowRange range = ranges[n * grids.to[0] + row];
                     if (range.highest < first || range.lowest >= end) continue;
                     for_row(grids, sampling, displacement + n * D * grids.to_voxels, row,
                             [&](int64_t voxel, const Neighbours<T>* at) {
                               for (int64_t c = 0; c < grids.channels; ++c) {
                                 splat<D>(out + c * grids.from_voxels, grids.stride, at,
                                          upstream[c * grids.to_voxels + voxel], first, end,
                                          [](T* to, T part) { *to += part; });
                               }
                             });
                   }
                 });
}

Tensor forward(const Tensor& moving, const Tensor& displacement, std::string interpolation,
               std::string padding) {
  const Sampling sampling = parse(interpolation, padding);
  check(moving, displacement);
  if (sampling.linear) check_dtype("displacement", displacement, moving.scalar_type());
  const Grids grids(moving, displacement);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  Tensor warped = torch::stable::new_empty(image, shape);
  if (warped.numel() == 0) return warped;
  dispatch_floating("displacement", field, [&](auto zero) {
    using T = decltype(zero);
    const T* u = field.const_data_ptr<T>();
    if (sampling.linear) {
      forward_linear(grids, sampling, image.const_data_ptr<T>(), u, warped.mutable_data_ptr<T>());
    } else {
      forward_nearest(grids, sampling, static_cast<int64_t>(image.element_size()),
                      not_a_number(image).data(), static_cast<const char*>(image.const_data_ptr()),
                      u, static_cast<char*>(warped.mutable_data_ptr()));
    }
  });
  return warped;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& displacement, std::string interpolation,
                                    std::string padding, bool need_moving, bool need_displacement,
                                    bool /* deterministic, as always on the CPU */) {
  const Sampling sampling = parse(interpolation, padding);
  check(moving, displacement);
  check_dtype("displacement", displacement, moving.scalar_type());
  check_dtype("gradient", gradient, moving.scalar_type());
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  check_shape("gradient", gradient, shape);
  const Grids grids(moving, displacement);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  // A gradient that nobody asked for is an empty tensor.
  Tensor grad_moving = need_moving ? torch::stable::new_zeros(image, image.sizes())
                                   : torch::stable::new_empty(image, {0});
  Tensor grad_displacement = need_displacement ? torch::stable::new_zeros(field, field.sizes())
                                               : torch::stable::new_empty(field, {0});
  if (upstream.numel() == 0) return {grad_moving, grad_displacement};
  dispatch_floating("moving", image, [&](auto zero) {
    using T = decltype(zero);
    const T* g = upstream.const_data_ptr<T>();
    const T* u = field.const_data_ptr<T>();
    if (need_moving) {
      backward_moving(grids, sampling, g, u, grad_moving.mutable_data_ptr<T>());
    }
    if (need_displacement) {
      backward_displacement(grids, sampling, g, image.const_data_ptr<T>(), u,
                            grad_displacement.mutable_data_ptr<T>());
    }
  });
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
