// Schema and CPU driver of diffreg::warp and diffreg::warp_backward.
#include "warp_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "../common/parallel.h"
#include "cubic.h"
#include "not_a_number.h"

namespace diffreg::warp {
namespace {

// Neighbours of some voxels of a line, as arrays that a vectorised loop can fill.
template <int D, typename T>
struct Lanes {
  static constexpr int64_t kCount = 128;
  int32_t low[D][kCount], high[D][kCount];
  T low_weight[D][kCount], high_weight[D][kCount];

  template <typename Rule>
  void fill(const Grids<D>& grids, const Line<D, T>& line, int64_t begin, int64_t end) {
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
template <typename Rule, int D, typename T, typename Run>
void for_row(const Grids<D>& grids, const T* displacement,  // (D, *to) of one sample
             int64_t row, const Run& run) {
  Lanes<D, T> lanes;
  for_lines(grids, displacement, row, [&](const Line<D, T>& line) {
    for (int64_t begin = 0; begin < grids.to[D - 1]; begin += Lanes<D, T>::kCount) {
      const int64_t end = std::min(begin + Lanes<D, T>::kCount, grids.to[D - 1]);
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

// Calls run(sample, row) for every row (axis 0) of the fixed grid, in parallel.
template <int D, typename Run>
void for_each_row(const Grids<D>& grids, const Run& run) {
  for_each_strip(
      grids.samples, grids.to[0], grids.row_voxels,
      [&](int64_t n, int64_t, int64_t first, int64_t end) {
        for (int64_t row = first; row < end; ++row) run(n, row);
      },
      D == 2 ? kStripRows : 1);
}

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
                          [&](int64_t x, const Neighbours<T>* at, const Corners<D, T>& corners) {
                            out[x] = corners.value(at);
                          });
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
                      warped[c * grids.to_voxels + voxel] =
                          contract<D>(moving + c * grids.from_voxels, grids.stride, at, -1);
                    }
                  });
  });
}

// Adds the upstream gradient times the derivative along each axis, channel after channel.
template <typename Rule, int D, typename T>
void add_to_displacement(const Grids<D>& grids,
                         const T* gradient,       // (N, C, *to)
                         const T* moving,         // (N, C, *from)
                         const T* displacement,   // (N, D, *to)
                         T* grad_displacement) {  // (N, D, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<D, T>& line) {
      T* out = grad_displacement + n * D * grids.to_voxels + line.voxel;
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        const T* upstream = gradient + c * grids.to_voxels + line.voxel;
        for_corners<Rule>(grids, line, moving + c * grids.from_voxels,
                          [&](int64_t x, const Neighbours<T>* at, const Corners<D, T>& corners) {
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
void add_to_displacement_cubic(const Grids<D>& grids, Padding padding,
                               const T* gradient,       // (N, C, *to)
                               const T* moving,         // (N, C, *from)
                               const T* displacement,   // (N, D, *to)
                               T* grad_displacement) {  // (N, D, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    T* out = grad_displacement + n * D * grids.to_voxels;
    for_cubic_row(grids, displacement + n * D * grids.to_voxels, padding, row,
                  [&](int64_t voxel, const CubicTaps<T>* at) {
                    for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
                      const T upstream = gradient[c * grids.to_voxels + voxel];
                      const T* image = moving + c * grids.from_voxels;
                      for (int k = 0; k < D; ++k) {
                        out[k * grids.to_voxels + voxel] +=
                            passed_on(upstream, contract<D>(image, grids.stride, at, k));
                      }
                    }
                  });
  });
}

// The rows of the moving grid that one row of the fixed grid touches.
struct RowRange {
  int64_t lowest, highest;
};

// Every strip of the moving grid collects its own contributions in the raster order of the fixed
// grid: no atomics, and the same bits whatever the number of threads.
// for_points(displacement, row, run) calls run(voxel, at) for a row's voxels; reach(at) is the
// range that one touches; splat(image, at, gradient, first, end) adds to the rows [first, end).
template <int D, typename T, typename ForPoints, typename Reach, typename Splat>
void add_to_moving(const Grids<D>& grids,
                   const T* gradient,      // (N, C, *to)
                   const T* displacement,  // (N, D, *to)
                   T* grad_moving,         // (N, C, *from)
                   const ForPoints& for_points, const Reach& reach, const Splat& splat) {
  std::vector<RowRange> ranges(grids.samples * grids.to[0], {grids.from[0], -1});
  for_each_row(grids, [&](int64_t n, int64_t row) {
    RowRange& range = ranges[n * grids.to[0] + row];
    for_points(displacement + n * D * grids.to_voxels, row, [&](int64_t, const auto* at) {
      const RowRange one = reach(at);
      range.lowest = std::min(range.lowest, one.lowest);
      range.highest = std::max(range.highest, one.highest);
    });
  });
  for_each_strip(grids.samples, grids.from[0], grids.stride[0],
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   const T* upstream = gradient + n * grids.channels * grids.to_voxels;
                   T* out = grad_moving + n * grids.channels * grids.from_voxels;
                   for (int64_t row = 0; row < grids.to[0]; ++row) {
                     const RowRange range = ranges[n * grids.to[0] + row];
                     if (range.highest < first || range.lowest >= end) continue;
                     for_points(displacement + n * D * grids.to_voxels, row,
                                [&](int64_t voxel, const auto* at) {
                                  for (int64_t c = 0; c < grids.channels; ++c) {
                                    const T value = upstream[c * grids.to_voxels + voxel];
                                    if (value == 0) continue;
                                    splat(out + c * grids.from_voxels, at, value, first, end);
                                  }
                                });
                   }
                 });
}

template <typename Rule, int D, typename T>
void add_to_moving_linear(const Grids<D>& grids, const T* gradient, const T* displacement,
                          T* grad_moving) {
  add_to_moving(
      grids, gradient, displacement, grad_moving,
      [&](const T* field, int64_t row, const auto& run)
          DIFFREG_INLINE_LAMBDA { for_row<Rule>(grids, field, row, run); },
      [](const Neighbours<T>* at) DIFFREG_INLINE_LAMBDA { return RowRange{at[0].low, at[0].high}; },
      [&](T* image, const Neighbours<T>* at, T value, int64_t first,
          int64_t end) DIFFREG_INLINE_LAMBDA {
        splat<D>(image, grids.stride, at, value, first, end, [](T* to, T part) { *to += part; });
      });
}

template <int D, typename T>
void add_to_moving_cubic(const Grids<D>& grids, Padding padding, const T* gradient,
                         const T* displacement, T* grad_moving) {
  add_to_moving(
      grids, gradient, displacement, grad_moving,
      [&](const T* field, int64_t row, const auto& run) {
        for_cubic_row(grids, field, padding, row, run);
      },
      [](const CubicTaps<T>* at) {
        const auto [low, high] = std::minmax_element(at[0].index, at[0].index + 4);
        return RowRange{*low, *high};
      },
      [&](T* image, const CubicTaps<T>* at, T value, int64_t first, int64_t end) {
        splat<D>(image, grids.stride, at, value, first, end);
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
                   const Sampling& sampling, Tensor* to_moving, Tensor* to_displacement) {
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
        if (to_field) add_to_displacement_cubic(grids, sampling.padding, g, image, u, to_field);
        return;
      }
      with_rule(sampling, [&](auto rule) {
        using Rule = decltype(rule);
        if (to_image) add_to_moving_linear<Rule>(grids, g, u, to_image);
        if (to_field) add_to_displacement<Rule>(grids, g, image, u, to_field);
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
  const auto output = [](const Tensor& like, bool need) {
    return need ? torch::stable::new_zeros(like, like.sizes())
                : torch::stable::new_empty(like, {0});
  };
  Tensor grad_moving = output(image, need_moving);
  Tensor grad_displacement = output(field, need_displacement);
  add_gradients(upstream, image, field, sampling, need_moving ? &grad_moving : nullptr,
                need_displacement ? &grad_displacement : nullptr);
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
