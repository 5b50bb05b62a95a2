// Schema and CPU driver of diffreg::warp and diffreg::warp_backward.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "../common/parallel.h"
#include "not_a_number.h"
#include "warp_rows.h"

namespace diffreg::warp {
namespace {

// Neighbours of some voxels of a line, as arrays that a vectorised loop can fill.
template <typename T>
struct Lanes {
  static constexpr int64_t kCount = 128;
  int32_t low[D][kCount], high[D][kCount];
  T low_weight[D][kCount], high_weight[D][kCount];

  template <typename Rule>
  void fill(const Grids& grids, const Line<T>& line, int64_t begin, int64_t end) {
    for_voxels<Rule>(grids, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
      for (int k = 0; k < D; ++k) {
        low[k][x - begin] = at[k].low;
        high[k][x - begin] = at[k].high;
        low_weight[k][x - begin] = at[k].low_weight;
        high_weight[k][x - begin] = at[k].high_weight;
      }
    });
  }
};

// Calls run(voxel, at) for the voxels of one row of the fixed grid, one after the other in raster
// order; without slopes.
template <typename Rule, typename T, typename Run>
void for_row(const Grids& grids, const T* displacement,  // (D, *to) of one sample
             int64_t row, const Run& run) {
  Lanes<T> lanes;
  for_lines(grids, displacement, row, [&](const Line<T>& line) {
    for (int64_t begin = 0; begin < grids.to[D - 1]; begin += Lanes<T>::kCount) {
      const int64_t end = std::min(begin + Lanes<T>::kCount, grids.to[D - 1]);
      lanes.template fill<Rule>(grids, line, begin, end);
      for (int64_t i = 0; i < end - begin; ++i) {
        Neighbours<T> at[D];
        for (int k = 0; k < D; ++k) {
          at[k] = {lanes.low[k][i],
                   lanes.high[k][i],
                   lanes.low_weight[k][i],
                   lanes.high_weight[k][i],
                   T(0),
                   T(0)};
        }
        run(line.voxel + begin + i, at);
      }
    }
  });
}

// Calls run(sample, row) for every row of the fixed grid, in parallel.
template <typename Run>
void for_each_row(const Grids& grids, const Run& run) {
  for_each_strip(grids.samples, grids.to[0], grids.row_voxels,
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   for (int64_t row = first; row < end; ++row) run(n, row);
                 });
}

template <typename Rule, typename T>
void forward_linear(const Grids& grids,
                    const T* moving,        // (N, C, *from)
                    const T* displacement,  // (N, D, *to)
                    T* warped) {            // (N, C, *to)
  with_index(grids, [&](auto zero) {
    using Index = decltype(zero);
    Index stride[D];
    for (int k = 0; k < D; ++k) stride[k] = static_cast<Index>(grids.stride[k]);
    for_each_row(grids, [&](int64_t n, int64_t row) {
      for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<T>& line) {
        for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
          const Plane<T, Index> image{moving + c * grids.from_voxels};
          T* out = warped + c * grids.to_voxels + line.voxel;
          for_voxels<Rule>(
              grids, line, 0, grids.to[D - 1],
              [&](int64_t x, const Neighbours<T>* at) { out[x] = value<D>(image, stride, at); });
        }
      });
    });
  });
}

// Voxels are copied as bytes, so that every dtype works.
template <typename Rule, typename T>
void forward_nearest(const Grids& grids, int64_t bytes,
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

template <typename Rule, typename T>
void backward_displacement(const Grids& grids,
                           const T* gradient,       // (N, C, *to)
                           const T* moving,         // (N, C, *from)
                           const T* displacement,   // (N, D, *to)
                           T* grad_displacement) {  // (N, D, *to), zeros
  with_index(grids, [&](auto zero) {
    using Index = decltype(zero);
    Index stride[D];
    for (int k = 0; k < D; ++k) stride[k] = static_cast<Index>(grids.stride[k]);
    for_each_row(grids, [&](int64_t n, int64_t row) {
      for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<T>& line) {
        T* out = grad_displacement + n * D * grids.to_voxels + line.voxel;
        for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
          const Plane<T, Index> image{moving + c * grids.from_voxels};
          const T* upstream = gradient + c * grids.to_voxels + line.voxel;
          for_voxels<Rule>(grids, line, 0, grids.to[D - 1],
                           [&](int64_t x, const Neighbours<T>* at) {
                             const Corners<D, T> corners(image, stride, at);
                             out[x] += passed_on(upstream[x], corners.template derivative<0>(at));
                             out[grids.to_voxels + x] +=
                                 passed_on(upstream[x], corners.template derivative<1>(at));
                           });
        }
      });
    });
  });
}

// The rows of the moving grid that one row of the fixed grid touches.
struct RowRange {
  int32_t lowest, highest;
};

template <typename Rule, typename T>
std::vector<RowRange> touched_rows(const Grids& grids, const T* displacement) {  // (N, D, *to)
  std::vector<RowRange> ranges(grids.samples * grids.to[0],
                               {static_cast<int32_t>(grids.from[0]), -1});
  for_each_row(grids, [&](int64_t n, int64_t row) {
    RowRange& range = ranges[n * grids.to[0] + row];
    for_row<Rule>(grids, displacement + n * D * grids.to_voxels, row,
                  [&](int64_t, const Neighbours<T>* at) {
                    range.lowest = std::min(range.lowest, at[0].low);
                    range.highest = std::max(range.highest, at[0].high);
                  });
  });
  return ranges;
}

// Every strip of the moving grid collects its own contributions in the raster order of the fixed
// grid: no atomics, and the same bits whatever the number of threads.
template <typename Rule, typename T>
void backward_moving(const Grids& grids,
                     const T* gradient,      // (N, C, *to)
                     const T* displacement,  // (N, D, *to)
                     T* grad_moving) {       // (N, C, *from), zeros
  const auto ranges = touched_rows<Rule>(grids, displacement);
  for_each_strip(grids.samples, grids.from[0], grids.stride[0],
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   const T* upstream = gradient + n * grids.channels * grids.to_voxels;
                   T* out = grad_moving + n * grids.channels * grids.from_voxels;
                   for (int64_t row = 0; row < grids.to[0]; ++row) {
                     const RowRange range = ranges[n * grids.to[0] + row];
                     if (range.highest < first || range.lowest >= end) continue;
                     for_row<Rule>(grids, displacement + n * D * grids.to_voxels, row,
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
  const Sampling sampling = parse_sampling(interpolation, padding);
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
    with_rule(sampling, [&](auto rule) {
      using Rule = decltype(rule);
      if constexpr (Rule::kLinear) {
        forward_linear<Rule>(grids, image.const_data_ptr<T>(), u, warped.mutable_data_ptr<T>());
      } else {
        forward_nearest<Rule>(grids, static_cast<int64_t>(image.element_size()),
                              not_a_number(image).data(),
                              static_cast<const char*>(image.const_data_ptr()), u,
                              static_cast<char*>(warped.mutable_data_ptr()));
      }
    });
  });
  return warped;
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
    with_rule(sampling, [&](auto rule) {
      using Rule = decltype(rule);
      if (need_moving) backward_moving<Rule>(grids, g, u, grad_moving.mutable_data_ptr<T>());
      if (need_displacement) {
        backward_displacement<Rule>(grids, g, image.const_data_ptr<T>(), u,
                                    grad_displacement.mutable_data_ptr<T>());
      }
    });
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
